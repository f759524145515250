"""`lightpeft audit scan`: exit status, outputs, references, and refusals that do not look clean."""

import json
from pathlib import Path

import pytest
from tests.support.received_modules import fresh_module, opinions, save_tiny_base

from lightpeft.cli.main import main

SCAN = ["audit", "scan"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan-verb")
    base = save_tiny_base(folder / "base")
    for seed in range(4):
        fresh_module(base, folder / f"module-{seed}", seed=seed)
    (folder / "data").mkdir()
    rows = opinions(80)
    lines = [
        {"said": text, "kind": label} for text, label in zip(rows.texts["text"], rows.labels, strict=True)
    ]
    for split in ("train", "validation"):
        path = folder / "data" / f"{split}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def data(folder: Path) -> list[str]:
    return ["--task", "mine", "--data", str(folder / "data"), "--text", "said", "--label", "kind"]


def test_nothing_found_is_0_and_a_finding_is_1(
    folder: Path, data: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = str(folder / "module-0")
    assert main([*SCAN, module, *data, "--threshold", "1000"]) == 0
    assert "nothing found, which does not say that it is clean" in capsys.readouterr().out
    assert (
        main([*SCAN, module, *data, "--threshold=-1000", "--json", "--sarif", str(tmp_path / "s.json")]) == 1
    )
    (report,) = json.loads(capsys.readouterr().out)
    assert report["found"] is True
    assert report["findings"][0]["level"] == "error"
    assert {"behaviour"} == report["scores"].keys()
    log = json.loads((tmp_path / "s.json").read_text())
    levels = [result["level"] for result in log["runs"][0]["results"]]
    assert "error" in levels
    assert len(levels) == len(report["findings"])


def test_without_data_built_in_texts_are_used_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SCAN, str(folder / "module-0"), "--threshold", "1000", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert any("built-in texts" in finding["message"] for finding in report["findings"])


def test_a_reference_is_made_and_used(
    folder: Path, data: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    clean = [str(folder / f"module-{seed}") for seed in (1, 2, 3)]
    reference = tmp_path / "reference.json"
    assert main([*SCAN, *clean, *data, "--make-reference", str(reference)]) == 0
    assert "3 clean modules; p-values are at least 0.250" in capsys.readouterr().out
    status = main([*SCAN, clean[0], *data, "--reference", str(reference), "--alpha", "0.25", "--json"])
    (report,) = json.loads(capsys.readouterr().out)
    assert status == int(report["found"])
    assert report["scores"]["p_behaviour"] >= 0.5
    assert report["scores"]["p_weights"] >= 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "1", "--reference", "r.json"], "--threshold would have no effect with --reference"),
        (["--alpha", "0.1"], "--alpha would have no effect with no --reference"),
        (["--data", "d"], "--data would have no effect with no --task"),
        (
            ["--make-reference", "r.json", "--alpha", "0.1"],
            "--alpha would have no effect with --make_reference",
        ),
        (["--reference", "absent.json"], "absent.json is missing"),
        (["--base", "/nowhere"], "'/nowhere' does not exist"),
    ],
)
def test_what_cannot_be_scanned_is_2(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SCAN, str(folder / "module-0"), *options]) == 2
    error = capsys.readouterr().err
    assert "not scanned" in error
    assert message in error


def test_no_module_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SCAN, str(tmp_path)]) == 2
    assert "has no adapter_config.json" in capsys.readouterr().err


def test_a_pickle_is_1_and_nothing_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = fresh_module(folder / "base", tmp_path / "module")
    (module / "extra.bin").write_bytes(b"")
    assert main([*SCAN, str(module)]) == 1
    out = capsys.readouterr().out
    assert "pickle" in out
    assert "not loaded" in out
