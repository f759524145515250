"""Scan reports as SARIF 2.1.0 (OASIS), which code hosts and editors show."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from lightpeft.audit.scan.finding import RULES, Finding, ScanReport

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(reports: Sequence[ScanReport]) -> dict[str, Any]:
    """One SARIF log with one run; every finding is a result at its file or folder."""
    names = list(RULES)
    driver = {
        "name": "lightpeft",
        "version": version("lightpeft"),
        "rules": [{"id": rule.name, "shortDescription": {"text": rule.title}} for rule in RULES.values()],
    }
    results = [_result(report, finding, names) for report in reports for finding in report.findings]
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(report: ScanReport, finding: Finding, names: list[str]) -> dict[str, Any]:
    place = report.folder / str(finding.evidence.get("file", ""))
    return {
        "ruleId": finding.rule,
        "ruleIndex": names.index(finding.rule),
        "level": finding.level,
        "message": {"text": finding.message},
        "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": place.absolute().as_uri()}}},
        ],
        "properties": finding.evidence,
    }
