"""`lightpeft audit scan`: look into a received module. 0 nothing found, 1 found, 2 not scanned."""

import json as json_text
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightpeft.cli.main import described
from lightpeft.cli.options import run_with_options
from lightpeft.cli.output import print_json
from lightpeft.errors import ConfigError, LightPeftError
from lightpeft.outputs import Output, check_file

if TYPE_CHECKING:
    from lightpeft.audit.scan import ScanReport, ScanTexts


FOUND, NOT_SCANNED = 1, 2
_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


def run(arguments: Sequence[str]) -> int:
    """Entry point of the verb. A module that could not be scanned does not look like a clean one."""
    folders = list(takewhile(lambda word: not word.startswith("-"), arguments))
    named = [f"--folders={json_text.dumps(folders)}"] if folders else []
    try:
        return run_with_options(scan, "audit scan", [*named, *arguments[len(folders) :]])
    except BrokenPipeError:
        raise
    except Exception as error:
        raise NotScannedError(f"scan: not scanned: {described(error)}") from error


class NotScannedError(LightPeftError):
    """Whatever kept the scan from being made."""

    exit_status: ClassVar[int] = NOT_SCANNED


def scan(
    folders: list[str],
    base: str | None = None,
    task: str | None = None,
    data: Path | None = None,
    text: str | None = None,
    label: str = "label",
    reference: Path | None = None,
    make_reference: Path | None = None,
    alpha: float | None = None,
    threshold: float | None = None,
    sarif: Path | None = None,
    json: bool = False,
) -> int:
    """Look into received PEFT modules: files, weights, behaviour under inserted tokens.

    Exit status: 0 nothing found, 1 a finding of level error in a module, 2 a module could not be scanned.

    Args:
        folders: The modules' folders or hub names; given first, without a name.
        base: Hub name or folder of the clean base that you use; what a module says of it does not count.
        task: Clean data of the modules' task: a known task's name, or any name with --text. By default
            built-in texts, which find less.
        data: Folder with the task's files.
        text: Text column of your own files.
        label: Label column of your own files.
        reference: File with clean reference modules, by --make_reference, of the same form, base and data.
        make_reference: Do not scan: measure these clean modules and write the file.
        alpha: With --reference: share of clean modules that may be found; by default 0.05, which needs 19
            references.
        threshold: Without --reference: behaviour score from which on a module is found.
        sarif: File for the findings as SARIF 2.1.0.
        json: Print JSON.
    """
    from lightpeft.audit import scan as scanner
    from lightpeft.audit.scan import Reference, ScanOptions, to_sarif
    from lightpeft.files import save_json

    if make_reference is not None:
        check_file(make_reference, Output.REFERENCE)
    elif sarif is not None:
        check_file(sarif, Output.FINDINGS)
    texts = _texts(task, data, text, label)
    if make_reference is not None:
        idle = {"reference": reference, "alpha": alpha, "threshold": threshold, "sarif": sarif, "json": json}
        _refuse_idle("--make_reference", {name: value for name, value in idle.items() if value})
        if base is None:
            raise ConfigError(
                "--make_reference needs the base that the modules were trained on; give --base."
            )
        return _write_reference(folders, base, texts, make_reference)
    if reference is None:
        _refuse_idle("no --reference", {"alpha": alpha})
    else:
        _refuse_idle("--reference", {"threshold": threshold})
    compared = None if reference is None else Reference.load(reference)
    given = {"alpha": alpha, "threshold": threshold}
    options = ScanOptions(**{name: value for name, value in given.items() if value is not None})
    reports = [
        scanner.scan(folder, base, texts=texts, reference=compared, options=options) for folder in folders
    ]
    if sarif is not None:
        save_json(sarif, to_sarif(reports), Output.FINDINGS)
    if json:
        print_json([report.to_dict() for report in reports])
    else:
        for report in reports:
            _print(report)
    if any(report.found for report in reports):
        return FOUND
    return NOT_SCANNED if any(report.not_scanned is not None for report in reports) else 0


def _texts(task: str | None, data: Path | None, text: str | None, label: str) -> "ScanTexts":
    from lightpeft.audit.rows import Rows
    from lightpeft.audit.scan import ScanTexts
    from lightpeft.cli.tasks import TaskOptions

    if task is None:
        _refuse_idle("no --task", {"data": data, "text": text})
        return ScanTexts.built_in()
    loaded = TaskOptions(task, data, (text,) if text else (), label).load()
    if not loaded.has_classes:
        raise ConfigError(f"{task} has no classes; give a classification task.")
    return ScanTexts.of(task, Rows.of(loaded.train))


def _refuse_idle(why: str, given: dict[str, object]) -> None:
    idle = [f"--{name}" for name, value in given.items() if value is not None]
    if idle:
        raise ConfigError(f"{' and '.join(idle)} would have no effect with {why}; leave them out.")


def _write_reference(folders: list[str], base: str, texts: "ScanTexts", out: Path) -> int:
    from lightpeft.audit import scan as scanner

    made = scanner.make_reference(folders, base, texts)
    made.save(out)
    count = len(made.modules)
    print(f"{out}: {count} clean modules; p-values are at least {1 / (count + 1):.3f}")
    return 0


def _print(report: "ScanReport") -> None:
    value, console = report.to_dict(), Console()
    table = Table("level", "rule", "what", title=Text(value["folder"]), title_justify="left")
    for finding in value["findings"]:
        row = (finding["level"], finding["rule"], finding["message"])
        table.add_row(*map(Text, row), style=_COLOURS[finding["level"]])
    console.print(table)
    if report.fingerprint is not None:
        known = "accuracy not measured"
        if report.cacc is not None:
            known = f"right on {report.cacc.value:.1%} of {report.cacc.total} of your texts"
        print(f"base {report.base}, fingerprint {report.fingerprint[:12]}: {known}")
    scores = ", ".join(f"{name} {score:.3f}" for name, score in report.scores.items()) or "none: not loaded"
    print(f"{verdict(report)}. Scores: {scores}. {report.seconds:.0f} s")


def verdict(report: "ScanReport") -> str:
    """What a report comes to, in one line."""
    if report.found:
        return "FOUND"
    if report.not_scanned is not None:
        return f"NOT SCANNED: {report.not_scanned.rstrip('.')}"
    return "nothing found, which does not say that it is clean"
