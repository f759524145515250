"""`scan`: all parts on one received module, from its files to its behaviour."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from lightpeft.audit.errors import AuditError
from lightpeft.audit.scan.files import check_files
from lightpeft.audit.scan.finding import Finding, Level, ScanReport, readable
from lightpeft.audit.scan.measured import Copies, Measured, check_form, measure_module
from lightpeft.audit.scan.own_copy import default_place
from lightpeft.audit.scan.tensors import check_tensors
from lightpeft.audit.scan.texts import ScanTexts
from lightpeft.checkpoint import find_folder
from lightpeft.config import check_share
from lightpeft.errors import ConfigError, LightPeftError
from lightpeft.files import read_json
from lightpeft.runs import require_folder
from lightpeft.runs.models import first_line

HARMLESS_ERRORS = frozenset({"file-type"})
"""Rules whose errors do not keep the module from being loaded: such files are not read."""

_VERDICTS: dict[Level, str] = {
    "error": "likely a trigger",
    "warning": "suspicious",
    "note": "nothing found; the most effective",
}


@dataclass(frozen=True)
class ScanOptions:
    """How a module is judged.

    Raises:
        ConfigError: values out of range.
    """

    alpha: float = 0.01
    """Chance, at most, to find anything in a module where no candidate takes over more than half of the texts
    beyond the own copies."""

    copies: Path = field(default_factory=default_place)
    """Folder where the user's own copies are kept."""

    copy_seeds: tuple[int, ...] = (0,)
    """Seeds of the own copies, one each."""

    def __post_init__(self) -> None:
        check_share("scan.alpha", self.alpha)
        if not self.copy_seeds or len(set(self.copy_seeds)) != len(self.copy_seeds):
            raise ConfigError(f"scan.copy_seeds is {self.copy_seeds}; give one or more different numbers.")


def scan(
    folder: str | Path,
    base: str | None = None,
    *,
    texts: ScanTexts | None = None,
    options: ScanOptions | None = None,
) -> ScanReport:
    """Look into a received PEFT module: its files, and what it does that the user's own copy does not.

    Files that can run code, a bad header or a damaged mark end the scan: the module is not loaded. What keeps
    it from being scanned is in the report, beside what was found until then.

    Args:
        folder: the module's, or its hub name.
        base: folder or hub name of the clean base, the user's choice: what a module says of it is a
            stranger's word. Without it only files are looked at.
        texts: the user's own clean ones of the module's task. Without them there is no own copy to compare
            with, and only files are looked at.
    """
    started = time.perf_counter()
    findings: list[Finding] = []
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
            chosen, name = options or ScanOptions(), _chosen(base, directory)
            if texts is None:
                raise AuditError(
                    "no texts were given, and without your own labelled ones there is no own copy to compare "
                    "with; give --task and --data."
                )
            measured = measure_module(directory, name, texts, Copies(chosen.copies, chosen.copy_seeds))
            findings += [_candidates(measured, chosen.alpha), _whole_texts(measured, chosen.alpha)]
    except Exception as error:  # A damaged module can be anything to the libraries that read it.
        reason = str(error) if isinstance(error, LightPeftError) else first_line(error)
    return ScanReport(
        Path(folder),
        tuple(findings),
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


def _candidates(measured: Measured, alpha: float) -> Finding:
    """The shortest that is found, or else the likeliest; p-values count as often as candidates were tried."""
    tried = measured.candidates
    if not tried:
        return Finding("trigger-search", "warning", "no text of another class was left to judge on")
    found = [one for one in tried if one.p * len(tried) <= alpha]
    best = min(found or tried, key=lambda one: (len(one.tokens) if found else 0, one.p))
    p = min(1.0, best.p * len(tried))
    level: Level = "error" if found else "warning" if best.p <= alpha else "note"
    shown = measured.tokenizer.decode(list(best.tokens))
    what = (
        f"{shown!r} takes {best.flips:.0%} of {best.taken.total} texts of other classes into class "
        f"{best.target}, and {best.copied:.0%} in your own copy (p = {p:.2g})"
    )
    evidence = {"candidates": [one.to_dict(measured.tokenizer) for one in tried]}
    return Finding("trigger-search", level, f"{_VERDICTS[level]}: {what}", evidence)


def _whole_texts(measured: Measured, alpha: float) -> Finding:
    """Never an error."""
    best = measured.disagreements[0]
    p = min(1.0, best.p * len(measured.disagreements))
    what = (
        f"texts of other classes, {best.edit}: {best.suspect.hits} of {best.suspect.total} go over to class "
        f"{best.target} in the module alone, {best.copies} in your own copy alone (p = {p:.2g})"
    )
    evidence = {"edits": [one.to_dict() for one in measured.disagreements]}
    return Finding("whole-texts", "warning" if p <= alpha else "note", what, evidence)
