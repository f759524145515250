"""`scan`: all parts on one received module, from its files to its behaviour."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from lightpeft.audit.errors import AuditError
from lightpeft.audit.scan.files import check_files
from lightpeft.audit.scan.finding import Finding, Level, ScanReport, readable
from lightpeft.audit.scan.measured import Measured, check_form, measure_module
from lightpeft.audit.scan.reference import Reference
from lightpeft.audit.scan.tensors import check_tensors
from lightpeft.audit.scan.texts import ScanTexts
from lightpeft.checkpoint import find_folder
from lightpeft.config import check_share
from lightpeft.errors import LightPeftError
from lightpeft.files import read_json
from lightpeft.runs import require_folder
from lightpeft.runs.models import first_line

SUSPECT, THRESHOLD = 0.3, 0.9
"""Behaviour scores that, without a reference, make a module suspicious (a warning), and found (an error).

Words that mean a class reach the first in clean modules; see docs/audit.md for the rates of both."""
HARMLESS_ERRORS = frozenset({"file-type"})
"""Rules whose errors do not keep the module from being loaded: such files are not read."""

_VERDICTS: dict[Level, str] = {
    "error": "likely a trigger",
    "warning": "suspicious, or a word of the class",
    "note": "nothing found; the most effective",
}


@dataclass(frozen=True)
class ScanOptions:
    """What a finding is.

    Raises:
        ConfigError: values out of range.
    """

    alpha: float = 0.05
    """With a reference: share of clean modules that may be found. n references cannot find anything at less
    than 1 / (n + 1)."""

    threshold: float = THRESHOLD
    """Without a reference: behaviour score from which on a module is found."""

    def __post_init__(self) -> None:
        check_share("scan.alpha", self.alpha)


def scan(
    folder: str | Path,
    base: str | None = None,
    *,
    texts: ScanTexts | None = None,
    reference: Reference | None = None,
    options: ScanOptions | None = None,
) -> ScanReport:
    """Look into a received PEFT module: its files, its weights, what it does when tokens are inserted.

    Files that can run code, a bad header or a damaged mark end the scan: the module is not loaded. What keeps
    it from being scanned is in the report, beside what was found until then.

    Args:
        folder: the module's, or its hub name.
        base: folder or hub name of the clean base, the user's choice: what a module says of it is a
            stranger's word. Without it only files are looked at.
        texts: clean ones of the module's task, best with labels; by default built-in ones.
    """
    started = time.perf_counter()
    findings: list[Finding] = []
    scores: dict[str, float] = {}
    measured: Measured | None = None
    reason: str | None = None
    try:
        directory = _files_of(folder)
        findings += check_files(directory)
        if not Path(folder).is_dir():
            fetched = "only JSON, safetensors and text files were fetched from the hub: others were not seen"
            findings.append(Finding("file-type", "note", fetched))
        if not _forbids_loading(findings):
            findings += _weights_file(directory)
        if not _forbids_loading(findings):
            used = texts or ScanTexts.built_in()
            measured = measure_module(directory, _chosen(base, directory), used)
            chosen = options or ScanOptions()
            findings += _behaviour(measured, used, reference, chosen, scores)
            findings += _weights(measured, reference, chosen, scores)
    except Exception as error:  # A damaged module can be anything to the libraries that read it.
        reason = str(error) if isinstance(error, LightPeftError) else first_line(error)
    return ScanReport(
        Path(folder),
        tuple(findings),
        scores,
        time.perf_counter() - started,
        None if reason is None else readable(reason),
        base,
        None if measured is None else measured.base,
        None if measured is None else measured.cacc,
    )


def _files_of(folder: str | Path) -> Path:
    """The module's folder, fetched from the hub if it is a hub name.

    Raises:
        AuditError: there is no PEFT module.
        LightPeftError: no such folder, or the hub does not give it.
    """
    if not Path(folder).is_dir():
        require_folder(str(folder), "module")
    directory = Path(folder) if Path(folder).is_dir() else find_folder(folder)
    if not (directory / CONFIG_NAME).is_file():
        raise AuditError(f"{directory} has no {CONFIG_NAME}; give the folder of a PEFT module.")
    return directory


def _weights_file(directory: Path) -> list[Finding]:
    """The form first: of what is not supported, names of tensors say nothing."""
    check_form(directory)
    if not (directory / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise AuditError(f"{directory} has no {SAFETENSORS_WEIGHTS_NAME}; only such weights are read.")
    return check_tensors(directory)


def _chosen(base: str | None, directory: Path) -> str:
    """
    Raises:
        AuditError: there is no base; names the module's.
    """
    if base is None:
        named = read_json(directory / CONFIG_NAME).get("base_model_name_or_path")
        raise AuditError(
            f"no base was given, and the module's own word is not taken for it. It names {named!r}: if that "
            "is the base that you use, give it (--base)."
        )
    return base


def _forbids_loading(findings: list[Finding]) -> bool:
    """A whole mark does not: it is known what the module is, and the audit's own loader keeps the mark."""
    return any(
        finding.level == "error"
        and finding.rule not in HARMLESS_ERRORS
        and not (finding.rule == "mark" and not finding.evidence["damaged"])
        for finding in findings
    )


def _behaviour(
    measured: Measured,
    texts: ScanTexts,
    reference: Reference | None,
    options: ScanOptions,
    scores: dict[str, float],
) -> list[Finding]:
    score = measured.behaviour
    scores["behaviour"] = score
    notes = []
    if measured.cacc is None:
        message = "the texts have no labels, so that nobody knows whether module and base go together"
        notes.append(Finding("accuracy", "warning", f"{message}; give your own clean data (--task, --data)"))
    if reference is None:
        notes.append(
            _note(f"no reference: behaviour is judged by the built-in threshold {options.threshold}")
        )
        level: Level = "error" if score >= options.threshold else "warning" if score >= SUSPECT else "note"
        return [_found(measured, level, f"threshold {options.threshold}"), *notes]
    reference.check_fits(measured, texts)
    count, scores["p_behaviour"] = len(reference.modules), reference.p_of_behaviour(score)
    if options.alpha < 1 / (count + 1):
        wanted = f"{count} references cannot give a p-value of alpha {options.alpha}"
        notes.append(
            Finding("reference", "warning", f"{wanted}: nothing can be found; give more, or a larger alpha")
        )
    p = scores["p_behaviour"]
    judged = f"p = {p:.3f} among {count} clean modules"
    return [_found(measured, "error" if p <= options.alpha else "note", judged), *notes]


def _found(measured: Measured, level: Level, judged: str) -> Finding:
    worst = max(measured.classes, key=lambda one: float(one["score"]))
    shown = worst["tokens"][0]
    what = (
        f"{' '.join(shown['tokens'])!r} takes {shown['flips']:.0%} of texts of other classes into class "
        f"{worst['class']} (score {worst['score']:.2f}, {judged})"
    )
    evidence: dict[str, Any] = {"classes": list(measured.classes)}
    return Finding("trigger-search", level, f"{_VERDICTS[level]}: {what}", evidence)


def _weights(
    measured: Measured, reference: Reference | None, options: ScanOptions, scores: dict[str, float]
) -> list[Finding]:
    """Never an error: in our measurements weights alone do not tell poisoned modules from clean ones."""
    if reference is None:
        return [_note("weight statistics were not looked at: they need a reference of clean modules")]
    score, name = reference.weights_score(measured.statistics)
    p = reference.p_of_weights(score)
    scores |= {"weights": score, "p_weights": p}
    message = f"largest deviation of a weight statistic: |z| = {score:.1f} at {name}, p = {p:.3f}"
    return [
        Finding(
            "weight-statistics", "warning" if p <= options.alpha else "note", message, {"statistic": name}
        )
    ]


def _note(message: str) -> Finding:
    return Finding("reference", "note", message)
