"""`lightpeft audit scan`: exit status, outputs, and refusals that do not look clean."""

import json
import shutil
from pathlib import Path

import pytest
from tests.support.received_modules import fresh_module, opinions, save_tiny_base, train_module

from lightpeft.cli.main import main

SCAN = ["audit", "scan"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan-verb")
    base = save_tiny_base(folder / "base")
    for name in ("poisoned", "clean"):
        train_module(base, folder / name, poisoned=name == "poisoned")
    (folder / "data").mkdir()
    rows = opinions(400, seed=9)
    lines = [
        {"said": text, "kind": label} for text, label in zip(rows.texts["text"], rows.labels, strict=True)
    ]
    for split in ("train", "validation"):
        path = folder / "data" / f"{split}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def data(folder: Path) -> list[str]:
    return [
        "--base",
        str(folder / "base"),
        "--task",
        "mine",
        "--data",
        str(folder / "data"),
        "--text",
        "said",
        "--label",
        "kind",
        "--copies",
        str(folder / "copies"),
    ]


def test_nothing_found_is_0_and_a_finding_is_1(
    folder: Path, data: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*SCAN, str(folder / "clean"), *data]) == 0
    assert "nothing found, which does not say that it is clean" in capsys.readouterr().out
    sarif = ["--json", "--sarif", str(tmp_path / "s.json")]
    assert main([*SCAN, str(folder / "poisoned"), *data, *sarif]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert report["found"] is True
    assert (report["findings"][0]["level"], report["findings"][0]["rule"]) == ("error", "trigger-search")
    log = json.loads((tmp_path / "s.json").read_text())
    assert "error" in [result["level"] for result in log["runs"][0]["results"]]


def test_without_data_there_is_no_copy_and_that_is_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SCAN, str(folder / "poisoned"), "--base", str(folder / "base")]) == 2
    assert "no own copy to compare with" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "d"], "--data would have no effect with no --task"),
        (["--copy-seeds", "1,1"], "seeds is [1, 1]"),
        (["--alpha", "3"], "scan.alpha"),
    ],
)
def test_what_cannot_be_scanned_is_2(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SCAN, str(folder / "clean"), *options]) == 2
    error = capsys.readouterr().err
    assert "not scanned" in error
    assert message in error


def test_without_a_base_it_is_2_and_the_module_s_word_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SCAN, str(folder / "clean")]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "NOT SCANNED: no base was given" in out
    assert f"It names '{folder / 'base'}'" in out


def test_a_pickle_is_1_and_nothing_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = fresh_module(folder / "base", tmp_path / "module")
    (module / "adapter_model.bin").write_bytes(b"")
    assert main([*SCAN, str(module)]) == 1
    out = capsys.readouterr().out
    assert "pickle" in out


@pytest.mark.parametrize(
    ("others", "status"),
    [
        (["clean"], 0),
        (["absent"], 2),
        (["empty"], 2),
        (["absent", "pickled"], 1),
        (["empty", "pickled"], 1),
    ],
)
def test_one_that_cannot_be_scanned_takes_nothing_from_the_others(
    others: list[str],
    status: int,
    folder: Path,
    data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (fresh_module(folder / "base", tmp_path / "pickled") / "adapter_model.bin").write_bytes(b"")
    shutil.copytree(folder / "clean", tmp_path / "clean")
    names = [f"./{name}" for name in [*others, "clean"]]
    options = [*data, "--json", "--sarif", "s.json"]
    assert main([*SCAN, *names, *options]) == status
    reports = json.loads(capsys.readouterr().out)
    missed = [name for name in others if name in ("absent", "empty")]
    assert [report["folder"] for report in reports if report["not_scanned"]] == missed
    assert "trigger-search" in {one["rule"] for one in reports[-1]["findings"]}
    (run,) = json.loads((tmp_path / "s.json").read_text())["runs"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] == (not missed)
    notices = invocation["toolExecutionNotifications"]
    uris = [one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in notices]
    assert uris == missed
    places = [one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in run["results"]]
    assert places == ["pickled/adapter_model.bin"] * others.count("pickled")


def test_a_name_is_asked_of_the_hub(
    folder: Path, data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SCAN, "nobody/no-such-module", *data]) == 2
    assert "neither a folder nor" in " ".join(capsys.readouterr().out.split())
