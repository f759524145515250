"""`scan`: all parts on one received module, from its files to its behaviour."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from lightpeft.audit.errors import AuditError
from lightpeft.audit.scan.files import check_files
from lightpeft.audit.scan.finding import Finding, Level, ScanReport
from lightpeft.audit.scan.measured import Measured, measure_module
from lightpeft.audit.scan.reference import Reference
from lightpeft.audit.scan.tensors import check_tensors
from lightpeft.audit.scan.texts import ScanTexts
from lightpeft.config import check_share

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

    Files that can run code, a bad header or a damaged mark end the scan: the module is not loaded.

    Args:
        base: folder or hub name of the clean base; by default the one that the module names.
        texts: clean ones of the module's task, best with labels; by default built-in ones.

    Raises:
        AuditError: it cannot be scanned: no PEFT module, no classifier, or texts, base or form that the
            reference does not fit.
        CheckpointError: module and base do not fit.
    """
    started = time.perf_counter()
    directory, chosen = Path(folder), options or ScanOptions()
    if not (directory / CONFIG_NAME).is_file():
        raise AuditError(f"{directory} has no {CONFIG_NAME}; give the folder of a PEFT module.")
    findings = check_files(directory)
    scores: dict[str, float] = {}
    if not _forbids_loading(findings):
        findings += check_tensors(directory)
    if not _forbids_loading(findings):
        used = texts or ScanTexts.built_in()
        measured = measure_module(directory, base, used)
        findings += _behaviour(measured, used, reference, chosen, scores)
        findings += _weights(measured, reference, chosen, scores)
    return ScanReport(directory, tuple(findings), scores, time.perf_counter() - started)


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
    if not texts.labels:
        notes.append(
            _note(
                "searched with built-in texts without labels; your own clean data (--task, --data) find more"
            )
        )
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
