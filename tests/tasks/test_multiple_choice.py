"""Choices behind a context: what is loaded, refused, and given to the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tests.support.tokenizers import pieces
from transformers import EvalPrediction

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks import TaskError, compute_metrics_for, custom_task, find_kind, load_task
from lightpeft.tasks.metrics import with_metrics

OBJECTIVE = "multiple-choice"
KIND = find_kind(OBJECTIVE)
COLUMNS = custom_task(("start", "x", "y"), objective=OBJECTIVE)
LISTS = custom_task(("start", "ends"), objective=OBJECTIVE)
ROWS = [
    {"start": "who went", "x": "ann", "y": "lee", "ends": ["ann", "lee", "usa"], "label": number}
    for number in (0, 1)
]


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("spec", "count"), [(COLUMNS, 2), (LISTS, 3)])
def test_choices_come_from_columns_or_lists(spec: Any, count: int, tmp_path: Path) -> None:
    data = load_task(spec, write(tmp_path, *ROWS))
    assert data.train["choices"][:] == [["ann", "lee", "usa"][:count]] * 2
    assert data.train["label"][:] == [0, 1]
    assert (data.spec.main, data.class_names) == (("accuracy",), ())


@pytest.mark.parametrize("count", [2, 3])
def test_every_choice_stands_behind_its_context(count: int) -> None:
    choices = ["ann", "lee", "to rome"][:count]
    split = Dataset.from_dict({"text": ["who went", "who"], "choices": [choices, choices], "label": [1, 0]})
    tokenizer = pieces(special=True)
    encoded = KIND.encode(split, tokenizer, TrainingConfig(max_length=16))
    assert encoded["labels"][:] == [1, 0]
    for row, context in enumerate(("who went", "who")):
        expected = [tokenizer(context, choice)["input_ids"] for choice in choices]
        assert encoded["input_ids"][row] == expected
    batch = KIND.collator(tokenizer)([encoded[0], encoded[1]])
    assert batch["input_ids"].shape[:2] == (2, count)
    assert batch["labels"].tolist() == [1, 0]


def test_accuracy_is_of_the_likeliest_choice() -> None:
    logits = np.array([[1.0, 3.0], [2.0, 0.0], [0.0, 1.0]])
    scores = compute_metrics_for(with_metrics(COLUMNS))(EvalPrediction(logits, np.array([1, 0, 0])))
    assert scores == pytest.approx({"accuracy": 2 / 3, "main": 2 / 3})


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        (COLUMNS, {"label": 2}, r"row 1: the label 2 is none of the choices, numbered from 0 to 1"),
        (COLUMNS, {"label": -1}, "the label -1 is none"),
        (COLUMNS, {"label": "x"}, "the label 'x' is none"),
        (COLUMNS, {"label": True}, "the label True is none"),
        (COLUMNS, {"label": None}, "the label None is none"),
        (COLUMNS, {"label": 1}, "choice 1 is right in all 2 training rows"),
        (COLUMNS, {"x": None}, "column 'x': 1 of 2 texts are missing"),
        (LISTS, {"ends": "ann"}, "row 1: expected a list of two choices or more, found 'ann'"),
        (LISTS, {"ends": ["ann"]}, "expected a list of two choices"),
        (LISTS, {"ends": ["ann", "lee"]}, "row 2: 3 choices, but row 1 has 2"),
        (LISTS, {"ends": ["ann", "lee", 3]}, "expected a text, found int"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    spec: Any, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(spec, write(tmp_path, ROWS[0] | change, ROWS[1]))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (("start",), {}, "the context's column and those of the choices"),
        (("a", "b"), {"class_names": ("x", "y")}, "neither classes nor numbers"),
    ],
)
def test_descriptions_that_no_data_fits_are_refused(
    text: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        custom_task(text, objective=OBJECTIVE, **options)


@pytest.mark.parametrize("line", ["who went", "who\tann", "who\tann\tlee\tusa"])
def test_a_line_of_another_number_of_choices_is_named(line: str) -> None:
    with pytest.raises(TaskError, match=r"t\.txt, line 2: found"):
        KIND.examples(COLUMNS, ["who\tann\tlee", line], "t.txt")
