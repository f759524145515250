"""Labels are not read as something else: numbers stay numbers, classes stay the classes they were."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightpeft.tasks import TaskError, TaskSpec, custom_task, load_task, load_validation

CUSTOM = custom_task(text=("text",))
NUMBERS = [f"{number / 7:.3f}" for number in range(60)]
CLASSES = ["yes", "no"] * 5


def csv_of(folder: Path, ending: str = "tsv", **splits: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    mark = {"csv": ",", "tsv": "\t"}[ending]
    for split, labels in splits.items():
        rows = [f"text {number}{mark}{label}" for number, label in enumerate(labels)]
        (folder / f"{split}.{ending}").write_text(
            "\n".join([f"text{mark}label", *rows]) + "\n", encoding="utf-8"
        )
    return folder


def jsonl_of(folder: Path, **splits: Sequence[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, labels in splits.items():
        rows = [json.dumps({"text": f"text {number}", "label": label}) for number, label in enumerate(labels)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def with_one(labels: Sequence[Any], odd: Any, row: int = 7) -> list[Any]:
    """The labels, with another one in a row (counted from 1)."""
    return [*labels[: row - 1], odd, *labels[row:]]


REFUSED_TEXTS: list[tuple[Sequence[str], str]] = [
    (with_one(NUMBERS, "NaN"), r"row 7: the label 'NaN' stands for a missing one"),
    (with_one(NUMBERS, "nan"), r"row 7: the label 'nan' stands for a missing one"),
    (with_one(NUMBERS, "<NA>"), r"row 7: the label '<NA>' stands for a missing one"),
    (with_one(NUMBERS, "N/A"), r"row 7: the label 'N/A' stands for a missing one"),
    (with_one(NUMBERS, "None"), r"row 7: the label 'None' stands for a missing one"),
    (with_one(NUMBERS, "inf"), r"row 7: the label 'inf' is infinite"),
    (with_one(NUMBERS, "-Infinity"), r"row 7: the label '-Infinity' is infinite"),
    (with_one(NUMBERS, "0,5"), r"row 7: the label '0,5' has a comma"),
    (with_one(NUMBERS, "1,234.5"), r"row 7: the label '1,234\.5' is no number, but 59 of 60"),
    (with_one(NUMBERS, "high"), r"row 7: the label 'high' is no number, but 59 of 60"),
    (with_one(NUMBERS, ""), r"1 of 60 labels are missing .* row 7"),
    (with_one(NUMBERS, " "), r"1 of 60 labels are missing .* row 7"),
    ([label.replace(".", ",") for label in NUMBERS], r"row 1: the label '0,000' has a comma"),
    (with_one(["1", "2", "3"] * 5, "nan"), r"row 7: the label 'nan' stands"),
    (with_one(["1", "2", "3"] * 5, "inf"), r"row 7: the label 'inf' is infinite"),
    (with_one(CLASSES, "nan"), r"row 7: the label 'nan' stands"),
    (with_one(CLASSES, "Yes"), r"'yes' \(row 1\) and 'Yes' \(row 7\) differ only in case or space"),
    (with_one(["so so", "no"] * 5, "so  so"), r"'so so' \(row 1\) and 'so  so' \(row 7\) differ only"),
    ([str(number) for number in range(60)], r"'label' has 60 different labels in 60 training rows"),
    ([f"text {number}" for number in range(60)], r"'label' has 60 different labels in 60 training rows"),
]


@pytest.mark.parametrize(("labels", "message"), REFUSED_TEXTS, ids=[message for _, message in REFUSED_TEXTS])
def test_texts_that_are_not_what_they_claim(tmp_path: Path, labels: Sequence[str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(CUSTOM, csv_of(tmp_path, train=labels, validation=labels[:6]))


REFUSED_VALUES: list[tuple[Sequence[Any], str]] = [
    (NUMBERS, r"label '0\.000' \(row 1\) is a number that is written as a text"),
    (with_one([float(label) for label in NUMBERS], None), r"1 of 60 labels are missing .* row 7"),
    (with_one([float(label) for label in NUMBERS], "0.5"), r"'float' \(row 1\), 'str' \(row 7\)"),
    (with_one([0, 1] * 5, True), r"'bool' \(row 7\), 'int' \(row 1\)"),
    (with_one(CLASSES, "NaN"), r"row 7: the label 'NaN' stands"),
    (with_one(CLASSES, ["yes"]), r"row 7: a label of type list"),
    (with_one(CLASSES, {"yes": 1}), r"row 7: a label of type dict"),
    (with_one(CLASSES, "\ud800"), r"row 7: half a character in the label"),
    (list(range(60)), r"'label' has 60 different labels in 60 training rows"),
]


@pytest.mark.parametrize(
    ("labels", "message"), REFUSED_VALUES, ids=[message for _, message in REFUSED_VALUES]
)
def test_values_that_are_not_what_they_claim(tmp_path: Path, labels: Sequence[Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(CUSTOM, jsonl_of(tmp_path, train=labels, validation=labels[:6]))


ACCEPTED: list[tuple[Sequence[str], tuple[str, ...]]] = [
    ([" 1", "2 ", "1"] * 4, ("1", "2")),
    ([" yes", "no", "yes "] * 4, ("no", "yes")),
    (["none", "favor", "against"] * 4, ("against", "favor", "none")),
    (["1", "2", "x"] * 4, ("1", "2", "x")),
    (["True", "False"] * 4, ("False", "True")),
    (["01", "02"] * 4, ("1", "2")),
    (with_one(NUMBERS, "1e-3"), ()),
    (with_one(NUMBERS, " 2"), ()),
    (with_one(NUMBERS, "-.5"), ()),
    ([str(number) for number in range(25)] * 3, tuple(str(number) for number in range(25))),
]


@pytest.mark.parametrize(("labels", "names"), ACCEPTED, ids=lambda value: str(value)[:40])
def test_what_is_meant_is_read(tmp_path: Path, labels: Sequence[str], names: tuple[str, ...]) -> None:
    data = load_task(CUSTOM, csv_of(tmp_path, train=labels, validation=labels))
    assert data.class_names == names
    assert data.is_regression == (names == ())


def test_quoted_numbers_may_be_few_classes(tmp_path: Path) -> None:
    data = load_task(CUSTOM, jsonl_of(tmp_path, train=["1.0", "2.0"] * 10, validation=["1.0"]))
    assert data.class_names == ("1.0", "2.0")


def test_an_odd_label_of_validation_is_named_with_its_row(tmp_path: Path) -> None:
    folder = csv_of(tmp_path, train=NUMBERS, validation=["0.5", "0.7", "n/a"])
    with pytest.raises(TaskError, match=r"validation\.tsv, column 'label', row 3: the label 'n/a' stands"):
        load_task(CUSTOM, folder)


def known(*names: str, regression: bool = False) -> TaskSpec:
    return TaskSpec(
        "mine", ("text",), class_names=names or None, regression=regression, labels_are_names=bool(names)
    )


EVALUATED: list[tuple[TaskSpec, Sequence[Any], list[Any]]] = [
    (known("no", "yes"), ["yes", " no"], [1, 0]),
    (known("1", "2", "5"), ["1", "5", "2"], [0, 2, 1]),
    (known("1", "2", "5"), ["05"], [2]),
    (known("0", "1"), ["1", "1"], [1, 1]),
    (known("False", "True"), ["True"], [1]),
    (known("a", "nil"), ["nil", "a"], [1, 0]),
    (known(regression=True), ["1", " 2.5"], [1.0, 2.5]),
]


@pytest.mark.parametrize(("spec", "labels", "ids"), EVALUATED)
def test_a_trained_model_keeps_its_class_numbers(
    tmp_path: Path, spec: TaskSpec, labels: Sequence[str], ids: list[Any]
) -> None:
    found = load_validation(spec, csv_of(tmp_path, validation=labels))
    assert found.validation["label"][:] == ids


@pytest.mark.parametrize(("value", "number"), [(5, 2), (5.0, 2), ("5", 2), (1, 0)])
def test_typed_labels_are_the_recorded_names(tmp_path: Path, value: Any, number: int) -> None:
    found = load_validation(known("1", "2", "5"), jsonl_of(tmp_path, validation=[value]))
    assert found.validation["label"][:] == [number]


@pytest.mark.parametrize(
    ("spec", "labels", "message"),
    [
        (
            known("no", "yes"),
            ["yes", "maybe"],
            r"not a class of the task: 'maybe', the first in row 2; known: 'no'",
        ),
        (known("no", "yes"), ["yes", "0"], r"not a class of the task: '0', the first in row 2"),
        (known("1", "2"), ["0"], r"not a class of the task: '0', the first in row 1"),
        (known("no", "yes"), ["yes", ""], r"row 2"),
        (known(regression=True), ["0.5", "x"], r"row 2: the label 'x' is no number"),
        (known(regression=True), ["x"], r"validation row 1 has the label 'x'"),
    ],
)
def test_a_class_that_the_model_does_not_know_is_named(
    tmp_path: Path, spec: TaskSpec, labels: Sequence[str], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        load_validation(spec, csv_of(tmp_path, validation=labels))


def test_held_out_rows_are_the_ones_that_were_not_trained_on(tmp_path: Path) -> None:
    folder = csv_of(tmp_path, train=CLASSES * 4)
    trained = load_task(CUSTOM, folder)
    assert trained.held_out_of == 40
    found = load_validation(known("no", "yes"), folder, held_out_of=40)
    assert found.validation.to_dict() == trained.validation.to_dict()
    csv_of(tmp_path, train=[*CLASSES * 4, "new"])
    with pytest.raises(TaskError, match=r"held out of 40 training rows, but .*train\.tsv has 41"):
        load_validation(known("no", "yes", "new"), folder, held_out_of=40)
    csv_of(tmp_path, validation=["yes"])
    assert len(load_validation(known("no", "yes"), folder, held_out_of=40).validation) == 1


def test_without_validation_and_nothing_held_out_it_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"has no validation split; found: 'train'"):
        load_validation(known("no", "yes"), csv_of(tmp_path, train=CLASSES))
