"""Labels that are lists of classes: their names, and their ids."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightpeft.errors import listed
from lightpeft.tasks.columns import Columns
from lightpeft.tasks.errors import TaskError
from lightpeft.tasks.labels import is_unicode
from lightpeft.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)

Ids = Mapping[str | int, int]


def check_list(values: Any, where: str, what: str, types: tuple[type, ...]) -> None:
    """Refuse what is no list of values of these types.

    Raises:
        TaskError: names the place in the list.
    """
    if not isinstance(values, list):
        raise TaskError(
            f"{where}: expected a list of {what}, found {type(values).__name__} {values!r:.60}; keep such "
            "data in a format that has lists (.parquet, .jsonl, .conll)"
        )
    for place, value in enumerate(values, start=1):
        if not isinstance(value, types) or isinstance(value, bool):
            raise TaskError(f"{where}, {place}: expected one of the {what}, found {value!r:.60}")
        if isinstance(value, str) and not is_unicode(value):
            raise TaskError(f"{where}, {place}: half a character in {value!a:.60}; save the file anew")


def resolve_lists(spec: TaskSpec, splits: Mapping[str, Columns]) -> tuple[TaskSpec, Mapping[str, Columns]]:
    """The spec with the classes of all splits, and the labels as lists of class ids.

    Raises:
        TaskError: a class that the task does not have.
    """
    ids = _ids_of(spec)
    if spec.class_names is None:
        spec = replace(spec, class_names=_names_of(spec, splits))
        ids = _ids_of(replace(spec, labels_are_names=True))
    spec = replace(spec, regression=False)
    return spec, {
        split: found | {"label": _numbered(spec, ids, found["label"], split)}
        for split, found in splits.items()
    }


def known_lists(spec: TaskSpec, columns: Columns) -> Columns:
    """The labels of a validation split as lists of class ids, of a task whose classes are known.

    Raises:
        TaskError: names the first row with a class that the task does not have.
    """
    return columns | {"label": _numbered(spec, _ids_of(spec), columns["label"], "validation")}


def _names_of(spec: TaskSpec, splits: Mapping[str, Columns]) -> tuple[str, ...]:
    """All classes of all splits; those that training never shows cannot be learned, but they count."""
    names = {split: {str(name) for row in found["label"] for name in row} for split, found in splits.items()}
    unseen = set().union(*names.values()) - names["train"]
    if unseen:
        logger.warning(
            "task %r: %s never occur in training and cannot be learned", spec.name, listed(sorted(unseen))
        )
    in_order = sorted(names["train"] | unseen, key=lambda name: (int(name) if name.isdecimal() else -1, name))
    return tuple(in_order)


def _ids_of(spec: TaskSpec) -> Ids:
    """The class id of everything that may be in the data."""
    names = spec.class_names or ()
    ids: dict[str | int, int] = {name: number for number, name in enumerate(names)}
    if spec.labels_are_names:
        return ids | {int(name): number for name, number in ids.items() if str(name).isdecimal()}
    return ids | {number: number for number in range(len(names))}


def _numbered(spec: TaskSpec, ids: Ids, rows: Iterable[Sequence[str | int]], split: str) -> list[list[int]]:
    found = []
    for row, names in enumerate(rows, start=1):
        unknown = [name for name in names if name not in ids]
        if unknown:
            raise TaskError(
                f"task {spec.name!r}: {split} row {row} has {unknown[0]!r}, which is none of the task's "
                f"classes: {listed(spec.class_names or ())}"
            )
        found.append([ids[name] for name in names])
    return found
