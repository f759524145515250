"""Scan reports as SARIF 2.1.0 (OASIS), which code hosts and editors show."""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightpeft.audit.scan.finding import RULES, Finding, ScanReport, readable

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(reports: Sequence[ScanReport]) -> dict[str, Any]:
    """One SARIF log with one run; every error and warning is a result at its file or folder.

    Modules that could not be scanned are notifications of the run, which then was not successful.
    """
    driver = {
        "name": "lightpeft",
        "version": version("lightpeft"),
        "rules": [{"id": rule.name, "shortDescription": {"text": rule.title}} for rule in RULES.values()],
    }
    missed = [report for report in reports if report.not_scanned is not None]
    invocation = {
        "executionSuccessful": not missed,
        "toolExecutionNotifications": [
            {
                "level": "error",
                "message": {"text": f"not scanned: {report.not_scanned}"},
                "locations": [_location(_place(report))],
            }
            for report in missed
        ],
    }
    results = [
        _result(report, finding)
        for report in reports
        for finding in report.findings
        if finding.level != "note"
    ]
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "results": results,
        "columnKind": "unicodeCodePoints",
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(report: ScanReport, finding: Finding) -> dict[str, Any]:
    place = _place(report, str(finding.evidence.get("file", "")))
    return {
        "ruleId": finding.rule,
        "ruleIndex": list(RULES).index(finding.rule),
        "level": finding.level,
        "message": {"text": finding.message},
        "locations": [_location(place)],
        "partialFingerprints": {"lightpeftFinding/v1": _fingerprint(finding, place)},
        "properties": finding.evidence,
    }


def _fingerprint(finding: Finding, place: str) -> str:
    """The same for the same finding of another day: scores in the message move, what it is about does not."""
    about = {name: finding.evidence[name] for name in ("keys", "tensors") if name in finding.evidence}
    return hashlib.sha256(json.dumps([finding.rule, place, about]).encode()).hexdigest()


def _location(place: str) -> dict[str, Any]:
    return {"physicalLocation": {"artifactLocation": {"uri": place}}}


def _place(report: ScanReport, name: str = "") -> str:
    """Relative: to the working folder where the module is in it, else to the folder that the module is in."""
    folder, here = Path(readable(str(report.folder))), Path.cwd()
    if folder.is_absolute() or ".." in folder.parts:
        whole = Path(os.path.normpath(here / folder))
        folder = whole.relative_to(here) if whole.is_relative_to(here) else Path(whole.name)
    return quote((folder / name).as_posix())
