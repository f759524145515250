"""What `scan` found in modules, as texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightpeft.audit.errors import AuditError
from lightpeft.report.units import seconds


@dataclass(frozen=True)
class Scanned:
    """One module."""

    folder: str
    verdict: str
    time: str
    findings: tuple[tuple[str, str, str], ...]
    """Level, rule and message."""


def scanned(scans: Sequence[Mapping[str, Any]]) -> list[Scanned]:
    """
    Args:
        scans: each with `folder`, `verdict`, `findings` (`rule`, `level`, `message`) and `seconds`.

    Raises:
        AuditError: something else.
    """
    found = []
    for scan in scans:
        try:
            rows = tuple(
                (str(one["level"]), str(one["rule"]), str(one["message"])) for one in scan["findings"]
            )
            time = seconds(float(scan["seconds"]))
            found.append(Scanned(str(scan["folder"]), str(scan["verdict"]), time, rows))
        except (KeyError, TypeError, ValueError) as error:
            raise AuditError(f"this is not a scan report: {str(scan)[:200]} ({error!r}).") from error
    return found
