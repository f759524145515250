"""Scripts for other people's trainers: short, and each ends in a light checkpoint that loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import read
from tests.support.language import save_encoder_decoder, save_language_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import lightpeft
from lightpeft.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "callback.py"
BASES = {
    "accelerate_loop": "bert",
    "callback": "bert",
    "dpo": "llama",
    "sentence_embeddings": "bert",
    "seq2seq": "t5",
    "sft": "llama",
    "two_phase": "bert",
}
"""What each runs on."""

LINES = {"two_phase": 80}
"""Of a script that is two."""

AUTO = {
    "bert": AutoModelForSequenceClassification,
    "llama": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
}


@pytest.fixture(scope="module")
def bases(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    (folder / "llama").mkdir()
    return {
        "bert": tiny_model,
        "llama": save_language_model("llama", folder / "llama"),
        "t5": save_encoder_decoder("t5", folder / "t5"),
    }


def test_every_example_is_run_and_short() -> None:
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    assert scripts.keys() == BASES.keys()
    long = {name for name, text in scripts.items() if text.count("\n") >= LINES.get(name, 50)}
    assert long == set()


@pytest.mark.parametrize("name", [name for name in BASES if name != "callback"])
def test_an_example_ends_in_a_light_checkpoint(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    base, out = bases[BASES[name]], tmp_path / "out"
    words = [sys.executable, str(EXAMPLES / f"{name}.py"), str(base), str(out)]
    done = subprocess.run(words, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    model = lightpeft.load(out / "light", base)
    whole = AUTO[BASES[name]].from_pretrained(base)
    assert lightpeft.find_anatomy(model).parameters < lightpeft.find_anatomy(whole).parameters


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
