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
HIDDEN = -1
MANY_WHOLE_NUMBERS = 20


def parse_labels(values: Sequence[str]) -> list[Label | None]:
    """Labels of a format without types: all integers, else all numbers, else strings.

    An empty string is a missing label (None).
    """
    present = [value for value in values if value != ""]
    parse: type[int] | type[float] | type[str] = str
    if all(INTEGER.fullmatch(value) for value in present):
        parse = int
    elif all(DECIMAL.fullmatch(value) for value in present):
        parse = float
    return [None if value == "" else parse(value) for value in values]


def check_labels(values: Sequence[Any], where: str) -> None:
    """Refuse labels that are missing, hidden (-1), not finite, or not int, float, bool or str.

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


def is_hidden(values: Sequence[Any]) -> bool:
    """Whether no label can be used: all missing or -1, as in the test splits of GLUE."""
    return all(_is_missing(value) or value == HIDDEN for value in values)


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
        return spec.class_names, ids | {index: index for index in range(len(spec.class_names))}
    kinds = sorted({type(value).__name__ for value in training})
    if len(kinds) > 1:
        raise TaskError(
            f"task {spec.name!r}: training labels of more than one type: {listed(kinds)}; use one"
        )
    classes = sorted(set(training) - {HIDDEN})
    ids = {label: index for index, label in enumerate(classes)}
    # A file without types may read "1" as a string in one split and as an integer in another.
    return tuple(map(str, classes)), ids | {str(label): ids[label] for label in classes}


def _ids(values: Sequence[Label], ids: Mapping[Any, int], split: str, spec: TaskSpec) -> list[int]:
    found = [ids.get(value, ids.get(str(value))) for value in values]
    unknown = [value for value, index in zip(values, found, strict=True) if index is None]
    if HIDDEN in unknown:
        raise _hidden(unknown.count(HIDDEN), split)
    if unknown:
        origin = "never seen in training" if spec.class_names is None else "not a class of the task"
        raise TaskError(
            f"task {spec.name!r}: {len(unknown)} of {len(values)} {split} labels are {origin}: "
            f"{listed(sorted(set(map(str, unknown))))}; known: {listed(dict.fromkeys(map(str, ids)))}"
        )
    return [index for index in found if index is not None]


def _hidden(count: int, split: str) -> TaskError:
    return TaskError(
        f"{count} labels of the {split} split are -1, which marks hidden labels (as in the test "
        f"splits of GLUE); use a split with labels, or give a class of yours another name than -1"
    )
