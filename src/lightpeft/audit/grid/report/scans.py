"""What `scan` found in modules, as rows of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightpeft.audit.errors import AuditError
from lightpeft.report.units import seconds

NOTHING = "nothing found, which is not a proof of anything"


def scan_rows(scans: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    """Folder, time, level, rule and message; one row a finding, or one that says there is none.

    Args:
        scans: each with `folder`, `findings` (`rule`, `level`, `message`) and `seconds`.

    Raises:
        AuditError: something else.
    """
    rows = []
    for scan in scans:
        try:
            head = (str(scan["folder"]), seconds(float(scan["seconds"])))
            found = [(str(one["level"]), str(one["rule"]), str(one["message"])) for one in scan["findings"]]
        except (KeyError, TypeError, ValueError) as error:
            raise AuditError(f"this is not a scan report: {str(scan)[:200]} ({error!r}).") from error
        reason = scan.get("not_scanned")
        if reason is not None:
            found.append(("–", "–", f"not scanned: {reason}"))
        rows += [(*head, *one) for one in found or [("–", "–", NOTHING)]]
    return rows
