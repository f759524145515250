"""`lightpeft audit scan`: look into a received module. 0 nothing found, 1 found, 2 not scanned."""

import json as json_text
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightpeft.cli.main import described
from lightpeft.cli.options import Seeds, run_with_options, seeds_of
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
    copies: Path | None = None,
    copy_seeds: Seeds | None = None,
    alpha: float | None = None,
    sarif: Path | None = None,
    json: bool = False,
) -> int:
    """Look into received PEFT modules: files, and behaviour beside your own copy of each.

    Exit status: 0 nothing found, 1 a finding of level error in a module, 2 a module could not be scanned.

    Args:
        folders: The modules' folders or hub names; given first, without a name.
        base: Hub name or folder of the clean base that you use; what a module says of it does not count.
        task: Your clean data of the modules' task: a known task's name, or any name with --text. Your own
            copies are trained on it.
        data: Folder with the task's files.
        text: Text column of your own files.
        label: Label column of your own files.
        copies: Folder where your own copies are kept, one a base, form, data and seed; by default in your
            cache folder.
        copy_seeds: Seeds of the copies that each module is compared with; by default 0.
        alpha: Chance to find anything in a module that takes over at most half of your texts more than your
            own copies do; by default 0.01.
        sarif: File for the findings as SARIF 2.1.0.
        json: Print JSON.
    """
    from lightpeft.audit import scan as scanner
    from lightpeft.audit.scan import ScanOptions, to_sarif
    from lightpeft.files import save_json

    if sarif is not None:
        check_file(sarif, Output.FINDINGS)
    texts = _texts(task, data, text, label)
    given: dict[str, Any] = {
        "alpha": alpha,
        "copies": copies,
        "copy_seeds": tuple(seeds_of(copy_seeds, (0,))),
    }
    options = ScanOptions(**{name: value for name, value in given.items() if value is not None})
    reports = [scanner.scan(folder, base, texts=texts, options=options) for folder in folders]
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


def _texts(task: str | None, data: Path | None, text: str | None, label: str) -> "ScanTexts | None":
    from lightpeft.audit.rows import Rows
    from lightpeft.audit.scan import ScanTexts
    from lightpeft.cli.tasks import TaskOptions

    if task is None:
        idle = [f"--{name}" for name, value in (("data", data), ("text", text)) if value is not None]
        if idle:
            raise ConfigError(f"{' and '.join(idle)} would have no effect with no --task; leave them out.")
        return None
    loaded = TaskOptions(task, data, (text,) if text else (), label).load()
    if not loaded.has_classes:
        raise ConfigError(f"{task} has no classes; give a classification task.")
    return ScanTexts.of(task, Rows.of(loaded.train))


def _print(report: "ScanReport") -> None:
    value, console = report.to_dict(), Console()
    print(report.verdict)
    table = Table("level", "rule", "what", title=Text(value["folder"]), title_justify="left")
    for finding in value["findings"]:
        row = (finding["level"], finding["rule"], finding["message"])
        table.add_row(*map(Text, row), style=_COLOURS[finding["level"]])
    console.print(table)
    if report.fingerprint is not None:
        right = (
            "" if report.cacc is None else f": right on {report.cacc.value:.1%} of {report.cacc.total} texts"
        )
        print(f"base {report.base}, fingerprint {report.fingerprint[:12]}{right}")
    print(f"{report.seconds:.0f} s")
