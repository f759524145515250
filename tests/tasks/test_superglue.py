"""SuperGLUE: what rows become, and candidates that are scored by their questions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import EvalPrediction

from lightpeft.tasks import (
    Evaluated,
    TaskError,
    compute_metrics_for,
    custom_task,
    find_kind,
    find_task,
    load_task,
)
from lightpeft.tasks.metrics import with_metrics

COPA = {"premise": "The man fell.", "choice1": "He ran.", "choice2": "It hurt.", "idx": 0}
WSC = {"text": "Ann told Lee that she had won .", "span1_text": "Ann", "span1_index": 0, "idx": 0}
WIC = {"word": "bank", "sentence1": "The bank of a river .", "sentence2": "A bank .", "start1": 4, "idx": 0}
RECORD = {
    "passage": "Ann met Lee.\n@highlight\nIn Rome.",
    "query": "@placeholder is a city",
    "entities": ["Ann", "Lee", "Rome", "Ann"],
    "answers": ["Rome", "rome"],
}
MULTIRC = {"paragraph": "Ann and Lee met.", "question": "Who met?", "idx": {"paragraph": 0}}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "copa": (
        [COPA | {"question": "effect", "label": 1}, COPA | {"question": "cause", "label": 0}],
        [
            {"text": "The man fell so", "choices": ["He ran.", "It hurt."], "label": 1},
            {"text": "The man fell because", "choices": ["He ran.", "It hurt."], "label": 0},
        ],
    ),
    "wsc": (
        [WSC | {"span2_text": "she", "span2_index": 4, "label": i} for i in (0, 1)],
        [{"text": "Ann told Lee that *she* had won .", "text_pair": "Ann", "label": i} for i in (0, 1)],
    ),
    "wic": (
        [WIC | {"label": i} for i in (0, 1)],
        [{"text": "bank: The bank of a river .", "text_pair": "A bank .", "label": i} for i in (0, 1)],
    ),
    "record": (
        [RECORD],
        [
            {
                "text": "Ann met Lee. In Rome.",
                "text_pair": f"{name} is a city",
                "label": int(name == "Rome"),
                "group": "Ann met Lee. In Rome.\n@placeholder is a city",
                "candidate": name,
            }
            for name in ("Ann", "Lee", "Rome")
        ],
    ),
    "multirc": (
        [MULTIRC | {"answer": name, "label": label} for name, label in (("Ann", 1), ("Tom", 0))],
        [
            {
                "text": "Ann and Lee met.",
                "text_pair": f"Who met? {name}",
                "label": label,
                "group": "Ann and Lee met.\nWho met?",
                "candidate": name,
            }
            for name, label in (("Ann", 1), ("Tom", 0))
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_become_what_is_learned(name: str, tmp_path: Path) -> None:
    rows, expected = CASES[name]
    data = load_task(f"superglue/{name}", write(tmp_path, *rows))
    assert list(data.train) == list(data.validation) == expected


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "copa",
            COPA | {"question": "reason", "label": 0},
            r"row 1: premise, question, .*KeyError: 'reason'",
        ),
        ("copa", COPA | {"label": 0}, "no column 'question'"),
        ("wsc", WSC | {"span2_text": None, "span2_index": 4, "label": 0}, r"row 1: text, .*AttributeError"),
    ],
)
def test_rows_of_another_form_are_named(name: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(f"superglue/{name}", write(tmp_path, row))


def test_a_test_split_without_labels_is_left_out(tmp_path: Path) -> None:
    rows, _ = CASES["copa"]
    (write(tmp_path, *rows) / "test.jsonl").write_text(json.dumps(COPA | {"question": "cause"}) + "\n")
    assert load_task("copa", tmp_path).test is None


def candidates(folder: Path) -> Any:
    """Two questions: of the first two of three candidates are right, of the second one of two."""
    rows = [
        {"text": "p", "text_pair": "q", "group": group, "candidate": candidate, "label": label}
        for group, candidate, label in (
            ("1", "red cat", 1),
            ("1", "cat", 1),
            ("1", "dog", 0),
            ("2", "bird", 0),
            ("2", "the tree", 1),
        )
    ]
    spec = custom_task(("text", "text_pair"), objective="candidate-classification")
    return load_task(spec, write(folder, *rows))


@pytest.mark.parametrize(
    ("yes", "expected"),
    [
        ([2, 1, -1, -1, 1], {"f1": 1.0, "exact_match": 1.0, "selected_f1": 1.0, "selected_exact_match": 1.0}),
        (
            [-1, 1, 2, -1, 1],
            {"f1": 2 / 3, "exact_match": 0.5, "selected_f1": 0.5, "selected_exact_match": 0.5},
        ),
        (
            [1, 1, 1, 2, 1],
            {"f1": 3 / 4, "exact_match": 0.0, "selected_f1": 0.5, "selected_exact_match": 0.5},
        ),
    ],
)
def test_candidates_are_scored_by_question(
    yes: list[int], expected: dict[str, float], tmp_path: Path
) -> None:
    data = candidates(tmp_path)
    spec = with_metrics(custom_like(data.spec, tuple(expected)))
    logits = np.stack([np.zeros(5), np.array(yes, dtype=float)], axis=1)
    labels = np.array(data.validation["label"][:])
    scores = compute_metrics_for(spec, data.validation)(EvalPrediction(logits, labels))
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_a_part_left_out_is_a_whole_question(tmp_path: Path) -> None:
    data = candidates(tmp_path)
    spec = with_metrics(custom_like(data.spec, ("f1", "selected_f1")))
    logits = np.stack([np.zeros(5), np.array([-1, 1, 2, -1, 1.0])], axis=1)
    labels = np.array(data.validation["label"][:])
    evaluated = Evaluated(logits, labels, data.validation)
    # Without the first question the second, all right; without it the first, one of two found and one wrong.
    assert find_kind(spec.objective).mains_without(spec, evaluated, 2) == [1.0, pytest.approx((0.5 + 0) / 2)]


def custom_like(spec: Any, metrics: tuple[str, ...]) -> Any:
    from dataclasses import replace

    return replace(spec, metrics=metrics, main=metrics)


def test_candidates_have_two_classes(tmp_path: Path) -> None:
    rows = [{"text": "p", "group": "1", "candidate": "x", "label": label} for label in (0, 1, 2)]
    spec = custom_task(("text",), objective="candidate-classification")
    with pytest.raises(TaskError, match="give it two classes, found '0', '1', '2'"):
        load_task(spec, write(tmp_path, *rows))


SIZES = {"boolq_resplit": ("boolq", 2470, 800), "cb": ("cb", 250, 56), "copa": ("copa", 400, 100)}


@pytest.mark.parametrize("folder", [*SIZES, "wic"])
def test_real_folders_load(data_dir: Path, folder: str) -> None:
    name, train, validation = SIZES.get(folder, ("wic", 5428, 638))
    data = load_task(find_task(f"superglue/{name}"), data_dir / folder)
    assert (len(data.train), len(data.validation)) == (train, validation)
