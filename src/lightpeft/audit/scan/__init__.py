"""The scan of a received module: its files, and what it does that the user's own copy of it does not."""

from lightpeft.audit.scan.finding import Finding, ScanReport
from lightpeft.audit.scan.sarif import to_sarif
from lightpeft.audit.scan.scan import ScanOptions, scan
from lightpeft.audit.scan.texts import ScanTexts

__all__ = ["Finding", "ScanOptions", "ScanReport", "ScanTexts", "scan", "to_sarif"]
