"""The demo and `bench speed`, on the real demo model but with few steps."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import read

from lightpeft.cli.main import main


def test_demo_puts_both_methods_side_by_side(
    minilm_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert minilm_path.is_dir()
    sizes = ["--train-examples", "64", "--validation-examples", "32"]
    short = ["--training.max_steps", "6", "--training.batch_size", "4", "--seeds", "[0]"]
    assert main(["demo", "--out", str(tmp_path), *sizes, *short]) == 0
    result = read(tmp_path / "result.json")
    assert result["ratios"]["encoder_parameters"] <= 0.70
    assert result["ratios"]["peft_parameters"] <= 0.35
    assert result["light"]["estimation_steps"] >= 1
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "light" / "pruning.json").is_file()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["main"]
    assert again == pytest.approx(result["light"]["metric"], abs=1e-6)


def test_bench_speed_measures_every_method(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    options = ["--model", str(tiny_model), "--training.batch_size", "4", "--repeats", "2"]
    assert main(["bench", "speed", *options, "--estimation-steps", "2", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == read(out)
    assert list(printed["methods"]) == [
        "plain LoRA",
        "plain LoRA, query and value",
        "light, after the cut",
        "estimation",
    ]
    light = printed["ratios"]["light, after the cut"]
    assert light["encoder_parameters"] < 0.75
    assert all(numbers["train_peak_bytes"] > 0 for numbers in printed["methods"].values())
