"""The callback in a plain Trainer script gives the plan that the command line gives."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import read

from lightpeft.cli.main import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "callback.py"


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40


def test_the_example_makes_the_plan_of_the_command_line(tiny_model: Path, tmp_path: Path) -> None:
    script, command = tmp_path / "script", tmp_path / "command"
    words = [sys.executable, str(EXAMPLE), str(tiny_model), str(script)]
    subprocess.run(words, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True)
    options = ["--task", "demo/sentiment", "--train-limit", "240", "--estimation.steps", "10"]
    options += ["--training.max_steps", "30", "--training.batch_size", "8", "--training.max_length", "64"]
    options += ["--training.group_by_length", "false"]  # a Trainer of your own shuffles
    assert main(["train", "--model", str(tiny_model), "--out", str(command), *options]) == 0
    plans = [read(folder / "light" / "pruning.json")["plan"] for folder in (script, command)]
    assert plans[0] == plans[1]
