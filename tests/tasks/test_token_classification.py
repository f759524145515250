"""A tag per word: what is loaded and refused, which token stands for which word, seqeval's scores."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
from datasets import Dataset
from tests.support.tokenizers import byte_level, pieces
from transformers import EvalPrediction

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks import (
    Evaluated,
    TaskError,
    TaskSpec,
    compute_metrics_for,
    custom_task,
    find_kind,
    find_task,
    load_task,
    load_validation,
)

OBJECTIVE = "token-classification"
KIND = find_kind(OBJECTIVE)
OWN = custom_task(("tokens",), label="tags", objective=OBJECTIVE)
TAGS = ("B-LOC", "B-PER", "I-PER", "O")
ROWS = [
    {"tokens": ["Ann", "Lee", "went", "to", "Rome"], "tags": ["B-PER", "I-PER", "O", "O", "B-LOC"]},
    {"tokens": ["Nobody"], "tags": ["O"]},
    {"tokens": [], "tags": []},
]
CONLL = """-DOCSTART- -X- O O

Ann NNP B-PER
Lee NNP I-PER
went VB O
to TO O
Rome NNP B-LOC


Nobody NN O
"""


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_own_tags_are_sorted_and_words_keep_theirs(tmp_path: Path) -> None:
    data = load_task(OWN, write(tmp_path, train=ROWS, validation=ROWS[:1]))
    assert data.class_names == TAGS
    assert data.train["text"][:] == [row["tokens"] for row in ROWS]
    assert data.train["label"][:] == [[1, 2, 3, 3, 0], [3], []]
    assert (data.spec.main, data.spec.metrics) == (("f1",), ("f1", "precision", "recall", "accuracy"))
    assert data.has_classes is False


def test_conll_files_are_words_and_their_last_field(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.conll").write_text(CONLL)
    data = load_task(OWN, tmp_path)
    assert data.train["text"][:] == [row["tokens"] for row in ROWS[:2]]
    assert data.train["label"][:] == [[1, 2, 3, 3, 0], [3]]


def test_numbers_of_a_known_task_are_its_classes(tmp_path: Path) -> None:
    spec = find_task("wnut_17")
    rows = [{"id": "0", "tokens": ["Ann", "Lee", "went"], "ner_tags": [9, 10, 0]}]
    data = load_task(spec, write(tmp_path, train=rows, validation=rows))
    assert [data.class_names[tag] for tag in data.train["label"][0]] == ["B-person", "I-person", "O"]


def test_own_numbers_are_names_in_their_order(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b", "c"], "tags": [10, 9, 2]}]
    data = load_task(OWN, write(tmp_path, train=rows, validation=rows))
    assert (data.class_names, data.train["label"][0]) == (("2", "9", "10"), [2, 1, 0])
    assert data.spec.main == ("accuracy",)


def test_a_tag_of_validation_alone_counts_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rare = [{"tokens": ["May"], "tags": ["B-DATE"]}]
    data = load_task(OWN, write(tmp_path, train=ROWS, validation=rare))
    assert "B-DATE" in data.class_names
    assert "'B-DATE' never occur in training" in caplog.text


def test_a_trained_model_knows_its_tags(tmp_path: Path) -> None:
    spec = TaskSpec(
        "own", ("tokens",), "tags", TAGS, regression=False, objective=OBJECTIVE, labels_are_names=True
    )
    assert load_validation(spec, write(tmp_path, validation=ROWS)).validation["label"][1] == [3]
    odd = [{"tokens": ["x"], "tags": ["B-ORG"]}]
    with pytest.raises(TaskError, match=r"validation row 1 has 'B-ORG'.*'B-LOC'"):
        load_validation(spec, write(tmp_path, validation=odd))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "row 1: 2 words, but 1 tags"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "expected a list of words, found str"),
        ({"tokens": ["a"], "tags": "O"}, "expected a list of tags, found str"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, r"row 1, column 'tokens', 2: .*found None"),
        ({"tokens": ["a"], "tags": [None]}, r"row 1, column 'tags', 1: .*found None"),
        ({"tokens": ["a"], "tags": [True]}, "found True"),
        ({"tokens": ["a"], "tags": [0.5]}, r"found 0\.5"),
        ({"tokens": ["\ud800"], "tags": ["O"]}, "half a character"),
        ({"tokens": ["a", "b"], "tags": ["O", "O"]}, "all training words have the tag 'O'"),
        ({"tokens": ["a"], "marks": ["O"]}, r"no column 'tags'\. .*'marks'|no column 'tags'"),
    ],
)
def test_what_cannot_be_learned_is_refused(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(OWN, write(tmp_path, train=[row], validation=ROWS))


def test_a_line_of_conll_without_a_tag_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Ann B-PER\nLee\n")
    with pytest.raises(TaskError, match="line 2: 'Lee' has no tag"):
        load_task(OWN, tmp_path)


def test_data_of_a_table_without_lists_says_where_to_keep_it(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("tokens,tags\na b,O O\n")
    with pytest.raises(TaskError, match=r"that has lists \(\.parquet, \.jsonl, \.conll\)"):
        load_task(OWN, tmp_path)


@pytest.mark.parametrize("special", [True, False])
def test_the_first_token_of_a_word_has_its_tag(special: bool) -> None:
    split = Dataset.from_dict(
        {"text": [["ann", "lee", "rome"], ["usa,", "to"]], "label": [[5, 6, 7], [8, 9]]}
    )
    tokenizer = pieces(special=special)
    encoded = KIND.encode(split, tokenizer, TrainingConfig(max_length=16))
    edge = [-100] if special else []
    assert encoded["labels"][0] == [*edge, 5, -100, 6, 7, -100, *edge]
    assert encoded["labels"][1] == [*edge, 8, -100, -100, 9, *edge]
    assert len(encoded["input_ids"][0]) == len(encoded["labels"][0])


def test_bytes_and_the_spaces_before_words_are_told_apart() -> None:
    split = Dataset.from_dict({"text": [["ab", "é"]], "label": [[5, 6]]})
    encoded = KIND.encode(split, byte_level(), TrainingConfig(max_length=16))
    learned = [(place, tag) for place, tag in enumerate(encoded["labels"][0]) if tag != -100]
    assert [tag for _, tag in learned] == [5, 6]
    assert learned[0][0] == 0
    assert learned[1][0] >= 2


def test_words_beyond_the_length_are_said_and_not_scored(caplog: pytest.LogCaptureFixture) -> None:
    split = Dataset.from_dict({"text": [["ann", "lee", "rome"], []], "label": [[5, 6, 7], []]})
    with caplog.at_level(logging.WARNING):
        encoded = KIND.encode(split, pieces(special=False), TrainingConfig(max_length=3))
    assert encoded["labels"][:] == [[5, -100, 6], [-100]]
    assert "1 of 3 words are beyond 3 tokens" in caplog.text


def spec_of(names: tuple[str, ...]) -> TaskSpec:
    return TaskSpec("t", ("tokens",), "tags", names, regression=False, objective=OBJECTIVE)


def evaluated(found: list[list[int]], right: list[list[int]], classes: int) -> EvalPrediction:
    """Logits and labels as the Trainer joins batches: padded with -100."""
    width = max(map(len, right)) + 1
    labels = np.full((len(right), width), -100)
    logits = np.full((len(right), width, classes), -100.0)
    for row, (some, theirs) in enumerate(zip(found, right, strict=True)):
        labels[row, 1 : len(theirs) + 1] = theirs
        logits[row, 1 : len(some) + 1] = np.eye(classes)[some]
    return EvalPrediction(logits, labels)


def test_whole_entities_are_counted() -> None:
    """Of three entities one is found whole, one half, one not, and one is found where none is."""
    names = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    right = [[1, 2, 0, 3], [0, 1, 2]]
    found = [[1, 2, 3, 0], [0, 1, 0]]
    scores = compute_metrics_for(spec_of(names))(evaluated(found, right, 5))
    assert scores == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "accuracy": 4 / 7, "main": 1 / 3}
    )


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_seqevals(seed: int) -> None:
    draw = np.random.default_rng(seed)
    names = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    lengths = draw.integers(1, 9, 12)
    right = [draw.integers(0, 5, length).tolist() for length in lengths]
    found = [[tag if draw.random() < 0.6 else int(draw.integers(0, 5)) for tag in row] for row in right]
    scores = compute_metrics_for(spec_of(names))(evaluated(found, right, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tags = [[[names[tag] for tag in row] for row in rows] for rows in (right, found)]
        for name in ("f1", "precision", "recall", "accuracy"):
            assert scores[name] == pytest.approx(getattr(seqeval.metrics, f"{name}_score")(*tags), abs=1e-6)


def test_nothing_found_and_nothing_there_is_no_warning() -> None:
    scores = compute_metrics_for(spec_of(("O", "B-PER")))(evaluated([[0, 0]], [[0, 0]], 2))
    assert (scores["f1"], scores["accuracy"]) == (0.0, 1.0)


def test_entities_are_not_counted_among_parts_of_speech() -> None:
    spec = spec_of(("NOUN", "VERB"))
    assert set(compute_metrics_for(spec)(evaluated([[0, 1]], [[0, 0]], 2))) == {"accuracy", "main"}
    with pytest.raises(TaskError, match=r"counts entities.*'NOUN'.*use 'accuracy'"):
        compute_metrics_for(TaskSpec(**(vars(spec) | {"metrics": ("f1",)})))


def test_answers_have_a_tag_for_every_word_that_was_read() -> None:
    split = KIND.examples(spec_of(TAGS), ["ann  lee rome", "", "to"], "texts.txt")
    assert split["text"][:] == [["ann", "lee", "rome"], [], ["to"]]
    encoded = KIND.encode(split, pieces(special=False), TrainingConfig(max_length=3))
    labels = np.full((3, 3), -100)
    for row, places in enumerate(encoded["labels"][:]):
        labels[row, : len(places)] = places
    logits = np.zeros((3, 3, 4))
    logits[0, 0, 1] = logits[0, 2, 2] = logits[2, 0, 3] = 1.0
    assert KIND.answers(spec_of(TAGS), Evaluated(logits, labels, split)) == [
        {"words": ["ann", "lee", "rome"], "tags": ["B-PER", "I-PER", None]},
        {"words": [], "tags": []},
        {"words": ["to"], "tags": ["O"]},
    ]
