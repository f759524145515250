"""The scan of a received module: file safety, weight statistics, and what inserted tokens do to it."""

from lightpeft.audit.scan.finding import Finding, ScanReport
from lightpeft.audit.scan.reference import Reference, make_reference
from lightpeft.audit.scan.sarif import to_sarif
from lightpeft.audit.scan.scan import ScanOptions, scan
from lightpeft.audit.scan.texts import ScanTexts

__all__ = [
    "Finding",
    "Reference",
    "ScanOptions",
    "ScanReport",
    "ScanTexts",
    "make_reference",
    "scan",
    "to_sarif",
]
