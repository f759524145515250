"""Any number of classes for a text: what is loaded and refused, and scikit-learn's scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from transformers import EvalPrediction

from lightpeft.tasks import Evaluated, TaskError, compute_metrics_for, custom_task, find_kind, load_task

OBJECTIVE = "multi-label-classification"
OWN = custom_task(("text",), objective=OBJECTIVE)
ROWS = [{"text": "a", "label": ["x", "z"]}, {"text": "b", "label": []}, {"text": "c", "label": ["y"]}]


def write(folder: Path, *rows: dict[str, Any], validation: list[dict[str, Any]] | None = None) -> Path:
    for split, some in (("train", rows), ("validation", validation or rows)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def test_classes_become_marks(tmp_path: Path) -> None:
    data = load_task(OWN, write(tmp_path, *ROWS))
    assert data.class_names == ("x", "y", "z")
    assert data.train["label"][:] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert data.train.features["label"].feature.dtype == "float32"
    assert (data.num_labels, data.has_classes, data.spec.main) == (3, False, ("micro_f1",))


def test_numbers_are_classes_too(tmp_path: Path) -> None:
    data = load_task(OWN, write(tmp_path, {"text": "a", "label": [10, 2]}, {"text": "b", "label": [2]}))
    assert (data.class_names, data.train["label"][:]) == (("2", "10"), [[1, 1], [1, 0]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "x"}, "row 1, column 'label': expected a list of classes, found str"),
        ({"label": ["x", "x"]}, "has one class twice"),
        ({"label": [None]}, "expected one of the classes, found None"),
        ({"label": [0.5]}, r"found 0\.5"),
        ({"label": []}, "all training rows have the same classes"),
    ],
)
def test_what_cannot_be_learned_is_refused(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(OWN, write(tmp_path, {"text": "a"} | row, validation=ROWS))


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns(seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    logits, labels = draw.normal(size=(30, 3)), draw.integers(0, 2, (30, 3)).astype(np.float32)
    scores = compute_metrics_for(load_task(OWN, write(tmp_path, *ROWS)).spec)(EvalPrediction(logits, labels))
    told = logits > 0
    assert scores["micro_f1"] == scores["main"] == pytest.approx(f1_score(labels, told, average="micro"))
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, told, average="macro"))
    assert scores["exact_match"] == np.mean((labels == told).all(axis=1))


def test_answers_are_the_likely_classes(tmp_path: Path) -> None:
    spec = load_task(OWN, write(tmp_path, *ROWS)).spec
    answers = find_kind(OBJECTIVE).answers(spec, Evaluated(np.array([[2.0, -1.0, 0.1]]), ()))
    assert answers[0]["labels"] == ["x", "z"]
    assert answers[0]["probabilities"]["y"] == pytest.approx(1 / (1 + np.e))
