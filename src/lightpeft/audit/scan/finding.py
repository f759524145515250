"""What a scan says: findings by rule."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightpeft.audit.metrics import Proportion

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""Worst first, as SARIF names them."""


@dataclass(frozen=True)
class Rule:
    """One thing that a scan looks for."""

    name: str
    part: str
    """`files` or `behaviour`."""
    title: str


RULES = {
    rule.name: rule
    for rule in (
        Rule("file-type", "files", "only files that a module and its page need"),
        Rule("pickle", "files", "no pickled or compiled content, and none under another ending"),
        Rule("link", "files", "no links out of the folder"),
        Rule("config", "files", "a configuration that makes no library import or fetch code"),
        Rule("header", "files", "a sound safetensors header, of tensors that the configuration asks for"),
        Rule("embeddings", "files", "whether it brings embeddings of the base"),
        Rule("values", "files", "finite values of a floating-point type"),
        Rule("size", "files", "no file that is too large to be read"),
        Rule("mark", "files", "no mark of lightpeft's audit, whole or damaged"),
        Rule("trigger-search", "behaviour", "no few tokens flip texts that they do not flip in an own copy"),
        Rule("whole-texts", "behaviour", "on edited texts it goes where an own copy goes"),
    )
}
"""By name. A finding of another rule cannot be made."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found, or (a note) that could not be looked at."""

    rule: str
    level: Level
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)
    """JSON values."""

    def __post_init__(self) -> None:
        if self.rule not in RULES or self.level not in LEVELS:
            raise ValueError(f"no rule {self.rule!r} or level {self.level!r}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"rule": self.rule, "level": self.level, "message": self.message, "evidence": self.evidence}


_ADVICE = "`lightpeft audit defend DIR` says what can be done, and what it costs"


@dataclass(frozen=True)
class ScanReport:
    """What a scan of one module found."""

    folder: Path
    findings: tuple[Finding, ...]
    seconds: float
    not_scanned: str | None = None
    """What kept its behaviour from being looked at, if files did not; None where it was."""
    base: str | None = None
    """The user's choice."""
    fingerprint: str | None = None
    """Of the base's weights."""
    cacc: Proportion | None = None
    """Accuracy on clean texts, of every class as many."""

    @property
    def found(self) -> bool:
        """Whether anything of level error was found."""
        return any(finding.level == "error" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """What it comes to, and what to do then, for people."""
        if self.found:
            return f"FOUND: do not use this module. Throw it away and train your own; {_ADVICE}."
        if self.not_scanned is not None:
            reason = self.not_scanned.rstrip(".")
            return f"NOT SCANNED: {reason}. Nothing is known of what it does; {_ADVICE}."
        warnings = sum(finding.level == "warning" for finding in self.findings)
        suspicious = f", but {warnings} of the points below are suspicious" if warnings else ""
        return (
            f"nothing found, which does not say that it is clean{suspicious}; before you use it, {_ADVICE}."
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, worst findings first."""
        ordered = sorted(self.findings, key=lambda finding: LEVELS.index(finding.level))
        return {
            "folder": readable(str(self.folder)),
            "found": self.found,
            "verdict": self.verdict,
            "not_scanned": self.not_scanned,
            "base": self.base,
            "fingerprint": self.fingerprint,
            "cacc": None if self.cacc is None else [self.cacc.hits, self.cacc.total],
            "findings": [finding.to_dict() for finding in ordered],
            "seconds": round(self.seconds, 3),
        }


def readable(text: str) -> str:
    """Words from a stranger, for terminals and files: nothing moves a cursor or cannot be written."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in plain)
