"""A tiny BERT with a word tokenizer, as a local folder that the command line can load."""

import json
from pathlib import Path

import pytest
from tests.support.word_bert import save_word_bert


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `lightpeft train --compare`."""
    from lightpeft.cli.main import main

    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["train", "--model", str(tiny_model), "--out", str(out), "--compare", *QUICK]) == 0
    return out


QUICK = [
    *("--task", "demo/sentiment"),
    *("--train-limit", "64"),
    *("--estimation.steps", "4"),
    *("--training.max_steps", "10"),
    *("--training.batch_size", "8"),
    *("--training.max_length", "32"),
]


def read(path: Path) -> dict[str, object]:
    value = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value
