"""Labels as found in the data -> int class ids or floats, with the class names they stand for."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightpeft.errors import listed
from lightpeft.tasks.errors import TaskError
from lightpeft.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)

Label = int | float | str
INTEGER = re.compile(r"[+-]?\d+")
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
MISSING = frozenset(("nan", "<na>"))
"""What other programs write where there is no label; never a class."""
MISSING_NUMBER = MISSING | {"na", "n/a", "null", "none", "-", "?"}
"""The same in a column of numbers; elsewhere some of them are names of classes."""
HIDDEN = -1
MANY_WHOLE_NUMBERS = 20
MANY_CLASSES = 20


def clean_labels(values: Sequence[Any], where: str, *, untyped: bool, as_names: bool = False) -> list[Any]:
    """Labels as they were meant: without space around them, and of a format without types read as numbers.

    Args:
        values: of a file without types strings, in which an empty one is a missing label (None).
        where: file and column, for messages.
        untyped: all integers are read as integers, else all numbers as floats.
        as_names: the labels are names of classes that are known, so nothing is read as a number.

    Raises:
        TaskError: names the first row (counted from 1) whose label is no number among numbers (NaN, infinite,
            a decimal comma), or a number that was written as a text.
    """
    stripped = [value.strip() if isinstance(value, str) else value for value in values]
    texts = {row: value for row, value in enumerate(stripped, start=1) if isinstance(value, str) and value}
    _refuse_missing(texts, MISSING, where)
    if not as_names:
        _refuse_almost_numbers(texts, where)
        if untyped:
            return _parsed(stripped)
    return [None if value == "" else value for value in stripped]


def _parsed(values: Sequence[str]) -> list[Label | None]:
    """All integers, else all numbers, else strings."""
    present = [value for value in values if value != ""]
    parse: type[int] | type[float] | type[str] = str
    if all(INTEGER.fullmatch(value) for value in present):
        parse = int
    elif all(DECIMAL.fullmatch(value) for value in present):
        parse = float
    return [None if value == "" else parse(value) for value in values]


def _refuse_missing(texts: Mapping[int, str], words: frozenset[str], where: str) -> None:
    for row, text in texts.items():
        if text.lower() in words:
            raise TaskError(
                f"{where}, row {row}: the label {text!r} stands for a missing one; remove or label this row"
            )


def _refuse_almost_numbers(texts: Mapping[int, str], where: str) -> None:
    """Refuse what is no number in a column of numbers; it would make classes of all of them."""
    numbers = [text for text in texts.values() if DECIMAL.fullmatch(text)]
    others = {row: text for row, text in texts.items() if not DECIMAL.fullmatch(text)}
    commas = {row: text for row, text in others.items() if DECIMAL_COMMA.fullmatch(text)}
    infinite = {row: text for row, text in others.items() if INFINITE.fullmatch(text)}
    missing = {row: text for row, text in others.items() if text.lower() in MISSING_NUMBER}
    if len(commas) + len(infinite) + len(missing) == len(others) and (numbers or commas):
        for row, text in commas.items():
            raise TaskError(f"{where}, row {row}: the label {text!r} has a comma; write numbers as 1234.5")
        for row, text in infinite.items():
            raise TaskError(f"{where}, row {row}: the label {text!r} is infinite; remove or label this row")
        _refuse_missing(missing, MISSING_NUMBER, where)
    with_point = any(not INTEGER.fullmatch(text) for text in numbers)
    if others and with_point and 2 * len(numbers) >= len(texts):
        row, text = next(iter(others.items()))
        raise TaskError(
            f"{where}, row {row}: the label {text!r} is no number, but {len(numbers)} of {len(texts)} labels "
            "are; correct it, or give classes names that are no numbers"
        )


def check_labels(values: Sequence[Any], where: str) -> None:
    """Refuse labels that are missing, not finite, or not int, float, bool or str.

    Raises:
        TaskError: names the count and the first row (counted from 1).
    """
    missing = [row for row, value in enumerate(values, start=1) if _is_missing(value)]
    if missing:
        raise TaskError(
            f"{where}: {len(missing)} of {len(values)} labels are missing (None, NaN or empty), "
            f"the first in row {missing[0]}; remove or label these rows"
        )
    for row, value in enumerate(values, start=1):
        if not isinstance(value, int | float | str):
            kind = type(value).__name__
            raise TaskError(f"{where}, row {row}: a label of type {kind}; use integers, floats or strings")
        if isinstance(value, float) and math.isinf(value):
            raise TaskError(f"{where}, row {row}: an infinite label")
        if isinstance(value, str) and not is_unicode(value):
            raise TaskError(
                f"{where}, row {row}: half a character in the label {value!r}; save the file anew"
            )


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which JSON can write and UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def is_hidden(values: Sequence[Any]) -> bool:
    """Whether no label can be used: all missing or -1, as in the test splits of GLUE."""
    return all(_is_missing(value) or value in (HIDDEN, str(HIDDEN)) for value in values)


def resolve_labels(
    spec: TaskSpec, labels: Mapping[str, Sequence[Label]]
) -> tuple[TaskSpec, dict[str, list[int] | list[float]]]:
    """Decide classes or regression, and turn labels into class ids or floats.

    Args:
        spec: what the task says about its labels; what it leaves open is read from the labels.
        labels: checked labels by split (see ``check_labels``); must contain ``train``.

    Returns:
        the spec with ``regression`` and ``class_names`` filled in, and the labels by split.

    Raises:
        TaskError: labels of mixed kinds, hidden labels, a class that is unknown or never seen in
            training, or training labels that are all the same.
    """
    if set(labels["train"]) == {HIDDEN}:
        raise _hidden(len(labels["train"]), "train")
    check_varied(labels["train"], spec)
    regression = spec.regression
    if regression is None:
        regression = spec.class_names is None and _are_floats(labels["train"], spec)
    if regression:
        found: dict[str, list[int] | list[float]] = {
            split: _floats(values, split, spec) for split, values in labels.items()
        }
        spec = replace(spec, regression=True)
    else:
        class_names, ids = _class_ids(spec, labels["train"])
        found = {split: _ids(values, ids, split, spec) for split, values in labels.items()}
        spec = replace(spec, regression=False, class_names=class_names)
    return spec, found


def check_varied(labels: Sequence[Label], spec: TaskSpec) -> None:
    """Refuse training labels that are all the same.

    Raises:
        TaskError: names the label.
    """
    if len(set(labels)) > 1:
        return
    named: dict[Label, str] = dict(enumerate(spec.class_names or ()))
    raise TaskError(
        f"task {spec.name!r}: all {len(labels)} training labels are "
        f"{named.get(labels[0], str(labels[0]))!r}; there is nothing to learn. Check the label column "
        f"{spec.label!r}, the order of the rows and train_limit"
    )


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _are_floats(values: Sequence[Label], spec: TaskSpec) -> bool:
    kinds = {type(value).__name__ for value in values}
    if kinds not in ({"float"}, {"int", "float"}):
        return False
    distinct = {float(value) for value in values}
    if len(distinct) <= MANY_WHOLE_NUMBERS and all(value.is_integer() for value in distinct):
        logger.warning(
            "task %r: labels are floats, so this is a regression, but they are all whole numbers; "
            "write them as integers if they are classes",
            spec.name,
        )
    return True


def _floats(values: Sequence[Label], split: str, spec: TaskSpec) -> list[float]:
    for row, value in enumerate(values, start=1):
        if isinstance(value, str | bool):
            raise TaskError(
                f"task {spec.name!r} is a regression, but {split} row {row} has the label {value!r}"
            )
    if set(values) == {HIDDEN}:
        raise _hidden(len(values), split)
    return [float(value) for value in values]


def _class_ids(spec: TaskSpec, training: Sequence[Label]) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Class names, and the class id of each label that may occur."""
    if spec.class_names is not None:
        ids: dict[Any, int] = {name: index for index, name in enumerate(spec.class_names)}
        if spec.labels_are_names:
            return spec.class_names, ids
        return spec.class_names, ids | {index: index for index in range(len(spec.class_names))}
    _refuse_mixed(training, spec)
    _refuse_quoted_numbers(training, spec)
    classes = sorted(set(training) - {HIDDEN})
    if len(classes) > max(MANY_CLASSES, len(training) / 2):
        raise TaskError(
            f"task {spec.name!r}: column {spec.label!r} has {len(classes)} different labels in "
            f"{len(training)} training rows ({listed(classes, 3)}), too many for classes; write numbers as "
            "1.0 for a regression, or choose another column"
        )
    _refuse_alike(training, spec)
    ids = {label: index for index, label in enumerate(classes)}
    # A file without types may read "1" as a string in one split and as an integer in another.
    return tuple(map(str, classes)), ids | {str(label): ids[label] for label in classes}


def _refuse_mixed(training: Sequence[Label], spec: TaskSpec) -> None:
    first: dict[str, int] = {}
    for row, value in enumerate(training, start=1):
        first.setdefault(type(value).__name__, row)
    if len(first) > 1:
        kinds = ", ".join(f"{kind!r} (row {row})" for kind, row in sorted(first.items()))
        raise TaskError(f"task {spec.name!r}: training labels of more than one type: {kinds}; use one")


def _refuse_quoted_numbers(training: Sequence[Label], spec: TaskSpec) -> None:
    """Refuse a regression that was written as texts; it would become a classifier."""
    texts = [value for value in training if isinstance(value, str)]
    with_point = [row for row, text in enumerate(texts, start=1) if not INTEGER.fullmatch(text)]
    many = len(set(texts)) > min(MANY_WHOLE_NUMBERS, len(texts) / 2)
    if with_point and many and all(DECIMAL.fullmatch(text) for text in texts):
        row = with_point[0]
        raise TaskError(
            f"task {spec.name!r}: the training label {texts[row - 1]!r} (row {row}) is a number that is "
            "written as a text; write numbers without quotes, or give classes names that are no numbers"
        )


def _refuse_alike(training: Sequence[Label], spec: TaskSpec) -> None:
    """Refuse classes that a reader would take for one."""
    rows: dict[Label, int] = {}
    for row, value in enumerate(training, start=1):
        rows.setdefault(value, row)
    alike: dict[str, Label] = {}
    for value, row in rows.items():
        key = " ".join(str(value).casefold().split())
        other = alike.setdefault(key, value)
        if other != value:
            raise TaskError(
                f"task {spec.name!r}: the training labels {other!r} (row {rows[other]}) and {value!r} (row "
                f"{row}) differ only in case or space; write them alike, or give the classes other names"
            )


def _ids(values: Sequence[Label], ids: Mapping[Any, int], split: str, spec: TaskSpec) -> list[int]:
    found = [_id_of(value, ids, spec) for value in values]
    unknown = {row: value for row, value in enumerate(values, 1) if found[row - 1] is None}
    hidden = sum(value == HIDDEN for value in unknown.values())
    if hidden:
        raise _hidden(hidden, split)
    if unknown:
        origin = "never seen in training" if spec.class_names is None else "not a class of the task"
        row = next(iter(unknown))
        raise TaskError(
            f"task {spec.name!r}: {len(unknown)} of {len(values)} {split} labels are {origin}: "
            f"{listed(sorted(set(map(str, unknown.values()))))}, the first in row {row}; known: "
            f"{listed(dict.fromkeys(map(str, ids)))}. Correct or remove these rows, or train with their "
            "classes"
        )
    return [index for index in found if index is not None]


def _id_of(value: Label, ids: Mapping[Any, int], spec: TaskSpec) -> int | None:
    if not spec.labels_are_names:
        return ids.get(value, ids.get(str(value)))
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    # "01" in a file without types was class 1 in training.
    return ids.get(text, ids.get(str(int(text))) if INTEGER.fullmatch(text) else None)


def known_labels(spec: TaskSpec, values: Sequence[Label], split: str) -> list[int] | list[float]:
    """Labels of a task whose classes, or that it has none, are known, as class ids or floats.

    Raises:
        TaskError: names the first row with a label that is no class of the task, or no number.
    """
    if spec.regression:
        return _floats(values, split, spec)
    return _ids(values, _class_ids(spec, ())[1], split, spec)


def _hidden(count: int, split: str) -> TaskError:
    return TaskError(
        f"{count} labels of the {split} split are -1, which marks hidden labels (as in the test "
        f"splits of GLUE); use a split with labels, or give a class of yours another name than -1"
    )
