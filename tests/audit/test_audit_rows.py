"""Rows, and the three sets of a task: which rows they are, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from lightpeft.audit import AuditError
from lightpeft.audit.rows import AuditTask, Rows
from lightpeft.errors import ConfigError
from lightpeft.tasks import TaskData, custom_task, load_task

TRAIN, VALIDATION = 40, 20
LONG = 8
"""Words of every fourth text; others have five."""


def text_of(split: str, row: int) -> str:
    """A text of its own: no two rows are the same."""
    return f"{split} {row} says a word" + (" and then three" if row % 4 == 0 else "")


def save_task(folder: Path, *, pairs: bool = False, labels: str = "classes") -> TaskData:
    for split, count in (("train", TRAIN), ("validation", VALIDATION)):
        lines = ["first,second,label"]
        for row in range(count):
            label = row % 2 if labels == "classes" else row + 0.5
            lines.append(f"{text_of(split, row)},other {split} {row},{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    names = ("first", "second") if pairs else ("first",)
    return load_task(custom_task(names, "label", name="own"), folder)


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return save_task(tmp_path)


def sets(task: AuditTask) -> list[set[str]]:
    return [set(rows.texts["text"]) for rows in (task.train, task.held_out, task.test)]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_three_sets_are_disjoint_and_held_out_rows_come_from_their_split(
    split: Any, task: TaskData
) -> None:
    found = AuditTask.of(task, held_out=12, held_out_from=split)
    train, held_out, test = sets(found)
    assert not train & held_out
    assert not train & test
    assert not held_out & test
    left = (TRAIN - 12, VALIDATION) if split == "train" else (TRAIN, VALIDATION - 12)
    assert (len(train), len(test)) == left
    assert (len(found.train), len(found.held_out), len(found.test)) == (left[0], 12, left[1])
    assert {text.split()[0] for text in held_out} == {split}
    assert found.class_names == ("0", "1")
    assert found.name == "own"


def test_labels_stay_with_their_texts(task: TaskData) -> None:
    found = AuditTask.of(task, train=10, held_out=10, test=10, seed=3)
    for rows in (found.train, found.held_out, found.test):
        assert len(rows) == 10
        assert [int(text.split()[1]) % 2 for text in rows.texts["text"]] == rows.labels


def test_the_seed_draws_the_rows(task: TaskData) -> None:
    first, again, other = (
        AuditTask.of(task, train=10, held_out=10, test=10, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert all(one != two for one, two in zip(sets(first), sets(other), strict=True))


def test_both_texts_of_a_pair_are_kept(tmp_path: Path) -> None:
    found = AuditTask.of(save_task(tmp_path, pairs=True), held_out=5, words=2)
    for rows in (found.train, found.held_out, found.test):
        assert list(rows.texts) == ["text", "text_pair"]
        for one, two in zip(*rows.texts.values(), strict=True):
            assert two == f"other {one.split()[0]}"


@pytest.mark.parametrize(("from_end", "expected"), [(False, "train 4 says"), (True, "and then three")])
def test_texts_are_shortened_from_either_end(from_end: bool, expected: str, task: TaskData) -> None:
    found = AuditTask.of(task, held_out=1, words=3, from_end=from_end, min_words=LONG)
    texts = [text for rows in (found.train, found.test) for text in rows.texts["text"]]
    assert all(len(text.split()) == 3 for text in texts)
    assert expected in texts


def test_short_texts_are_left_out_of_training_only(task: TaskData) -> None:
    found = AuditTask.of(task, held_out=2, min_words=LONG)
    assert all(
        len(text.split()) >= LONG for text in (*found.train.texts["text"], *found.held_out.texts["text"])
    )
    assert len(found.train) == TRAIN // 4 - 2
    assert len(found.test) == VALIDATION


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": TRAIN}, "Lower held_out"),
        ({"held_out": VALIDATION, "held_out_from": "validation"}, "Lower held_out"),
        ({"min_words": 50}, "0 training rows of 50 words"),
        ({"held_out": -1}, "held_out is -1"),
        ({"train": 0}, "train is 0"),
        ({"train": 4 * TRAIN}, f"train asks for {4 * TRAIN} rows"),
        ({"test": VALIDATION + 1}, f"{VALIDATION} are left"),
        ({"test": 0}, "test is 0"),
        ({"words": 0}, "words is 0"),
        ({"min_words": -1}, "min_words is -1"),
        ({"from_end": True}, "from_end would have no effect"),
    ],
)
def test_what_gives_no_task(options: dict[str, Any], message: str, task: TaskData) -> None:
    with pytest.raises((AuditError, ConfigError), match=message):
        AuditTask.of(task, **{"held_out": 5} | options)


def test_a_regression_has_no_classes(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="has no classes"):
        AuditTask.of(save_task(tmp_path, labels="numbers"), held_out=5)


@pytest.mark.parametrize(
    ("texts", "labels"),
    [({"text": ["a"]}, [0, 1]), ({"said": ["a"]}, [0]), ({"text": ["a"], "text_pair": []}, [0])],
)
def test_columns_that_do_not_fit(texts: dict[str, list[str]], labels: list[int]) -> None:
    with pytest.raises(AuditError, match="as many labels"):
        Rows(texts, labels)


def test_rows_are_taken_split_and_shuffled_whole() -> None:
    rows = Rows({"text": list("abcdef"), "text_pair": list("ABCDEF")}, list(range(6)))
    assert rows.take([4, 0]) == Rows({"text": ["e", "a"], "text_pair": ["E", "A"]}, [4, 0])
    first, rest = rows.split(2)
    assert (first.labels, rest.labels) == ([0, 1], [2, 3, 4, 5])
    assert [len(part) for part in rows.split(9)] == [6, 0]
    shuffled = rows.shuffled(1)
    assert shuffled.labels != rows.labels
    assert rows.take(shuffled.labels) == shuffled
    assert Rows.of(rows.dataset()) == rows
