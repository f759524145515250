"""SARIF of a scan, against the part of the published schema (2.1.0) that it uses, written down by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lightpeft.audit.scan import Finding, ScanReport, to_sarif
from lightpeft.audit.scan.finding import RULES

MESSAGE = {"text": str}
LOCATION = {"physicalLocation": {"artifactLocation": {"uri": "uri"}}}
SCHEMA: Any = {
    "$schema": str,
    "version": "2.1.0",
    "runs": [
        {
            "tool": {
                "driver": {
                    "name": str,
                    "version": str,
                    "rules": [{"id": str, "shortDescription": MESSAGE}],
                }
            },
            "invocations": [
                {
                    "executionSuccessful": bool,
                    "toolExecutionNotifications": [
                        {"level": "level", "message": MESSAGE, "locations": [LOCATION]}
                    ],
                }
            ],
            "columnKind": "unicodeCodePoints",
            "results": [
                {
                    "ruleId": str,
                    "ruleIndex": int,
                    "level": "level",
                    "message": MESSAGE,
                    "locations": [LOCATION],
                    "partialFingerprints": dict,
                    "properties": dict,
                }
            ],
        }
    ],
}
"""Every key must be there, and no other; a list has any number of what it shows."""
RELATIVE = re.compile(r"(?![/.]{1,2}/)[A-Za-z0-9._~/%-]+")


def check(value: Any, schema: Any, place: str = "log") -> None:
    if isinstance(schema, dict):
        assert isinstance(value, dict), place
        assert value.keys() == schema.keys(), place
        for name, inner in schema.items():
            check(value[name], inner, f"{place}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list), place
        for row, inner in enumerate(value):
            check(inner, schema[0], f"{place}[{row}]")
    elif isinstance(schema, type):
        assert type(value) is schema, place
    elif schema == "uri":
        assert RELATIVE.fullmatch(value), place
        assert ".." not in value.split("/"), place
    elif schema == "level":
        assert value in ("none", "note", "warning", "error"), place
    else:
        assert value == schema, place


def report(folder: str | Path, *findings: Finding, **rest: Any) -> ScanReport:
    return ScanReport(Path(folder), findings, 1.0, **rest)


def pickled(name: str = "adapter_model.bin", message: str = "m") -> Finding:
    return Finding("pickle", "error", message, {"file": name})


def result(log: dict[str, Any]) -> dict[str, Any]:
    (found,) = log["runs"][0]["results"]
    return dict(found)


def test_it_is_of_the_schema(tmp_path: Path) -> None:
    note = Finding("whole-texts", "note", "nothing")
    log = to_sarif(
        [
            report(tmp_path / "bad", pickled(), note),
            report("user/clean", note),
            report("some/where", Finding("trigger-search", "warning", "w", {"candidates": [{"class": 0}]})),
            report("absent", not_scanned="there is none"),
        ]
    )
    check(json.loads(json.dumps(log)), SCHEMA)
    (run,) = log["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(RULES)
    # Notes are no results, and a clean module has none.
    assert [one["ruleId"] for one in run["results"]] == ["pickle", "trigger-search"]
    assert all(list(RULES)[one["ruleIndex"]] == one["ruleId"] for one in run["results"])
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    (notice,) = invocation["toolExecutionNotifications"]
    assert notice["message"]["text"] == "not scanned: there is none"


def test_a_whole_run_was_successful_with_findings_too() -> None:
    (invocation,) = to_sarif([report("a", pickled())])["runs"][0]["invocations"]
    assert invocation == {"executionSuccessful": True, "toolExecutionNotifications": []}


@pytest.mark.parametrize(
    ("folder", "name", "uri"),
    [
        ("modules/a", "x.bin", "modules/a/x.bin"),
        ("modules/a", "", "modules/a"),
        ("a b", "[c]\udcff.bin", "a%20b/%5Bc%5D%5Cudcff.bin"),
        ("{here}/modules/a", "x.bin", "modules/a/x.bin"),
        ("{here}/../elsewhere/a", "x.bin", "a/x.bin"),
        ("../elsewhere/a", "x.bin", "a/x.bin"),
    ],
)
def test_places_are_relative(
    folder: str, name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shown = name.encode("utf-8", "backslashreplace").decode()
    found = result(to_sarif([report(folder.format(here=Path.cwd()), pickled(shown))]))
    assert found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri


def test_fingerprints_are_of_what_is_found_and_where() -> None:
    def of(folder: str, finding: Finding) -> str:
        return str(result(to_sarif([report(folder, finding)]))["partialFingerprints"])

    first = of("a", pickled())
    assert first == of("a", pickled(message="other words"))
    others = [of("b", pickled()), of("a", pickled("x.bin")), of("a", Finding("pickle", "error", "m"))]
    assert len({first, *others}) == 4
