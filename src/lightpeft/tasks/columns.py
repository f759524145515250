"""The columns of one split, checked and renamed to ``text``, ``text_pair`` and, with labels, ``label``."""

import logging
from typing import Any

from lightpeft.errors import did_you_mean, listed
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.files import Table
from lightpeft.tasks.labels import check_labels, clean_labels, is_hidden, is_unicode
from lightpeft.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)

Columns = dict[str, list[Any]]


def checked_columns(spec: TaskSpec, table: Table) -> Columns:
    """The texts, and the labels where the task has any, of a split that is trained or validated on.

    Raises:
        TaskError: a missing column, no rows, or a text or label that cannot be used.
    """
    columns = checked_texts(spec, table)
    if not spec.has_labels:
        return columns
    columns["label"] = _labels(spec, table)
    check_labels(columns["label"], f"{table.where}, column {spec.label!r}")
    return columns


def checked_test_columns(spec: TaskSpec, table: Table) -> Columns | None:
    """The same for a test split, or None (and a log line) if its labels are hidden or absent.

    Raises:
        TaskError: as ``checked_columns``.
    """
    if spec.has_labels and (spec.label not in table.names or is_hidden(_column(table, spec.label))):
        logger.info("%s has no labels and is left out", table.where)
        return None
    return checked_columns(spec, table)


def checked_texts(spec: TaskSpec, table: Table) -> Columns:
    """The one or two text columns of a split, as ``text`` and ``text_pair``.

    Raises:
        TaskError: a missing column, no rows, or a text that is missing or no string.
    """
    columns: Columns = {}
    for key, name in zip(("text", "text_pair"), spec.text, strict=False):
        columns[key] = _column(table, name)
        if not columns[key]:
            raise TaskError(f"{table.where} is empty: columns but no rows; check the file")
        _check_strings(columns[key], f"{table.where}, column {name!r}")
    return columns


def _labels(spec: TaskSpec, table: Table) -> list[Any]:
    return clean_labels(
        _column(table, spec.label),
        f"{table.where}, column {spec.label!r}",
        untyped=table.untyped,
        as_names=spec.class_names is not None and spec.labels_are_names,
    )


def _column(table: Table, name: str) -> list[Any]:
    if not table.names:
        raise TaskError(f"{table.where} is empty: no columns and no rows; check the file")
    if name not in table.names:
        hint = did_you_mean(name, table.names)
        raise TaskOptionError(
            f"{table.where} has no column {name!r}.{hint} Its columns: {listed(table.names)}"
        )
    return table.column(name)


def _check_strings(texts: list[Any], where: str) -> None:
    missing = [row for row, text in enumerate(texts, start=1) if text is None or text != text]
    if missing:
        raise TaskError(
            f"{where}: {len(missing)} of {len(texts)} texts are missing (None or NaN), the first "
            f"in row {missing[0]}; remove these rows"
        )
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise TaskError(f"{where}, row {row}: expected a text, found {kind} {text!r:.60}")
        if not is_unicode(text):
            raise TaskError(
                f"{where}, row {row}: half a character (a lone surrogate) in {text!a:.60}; save the file anew"
            )
    blank = sum(not text.strip() for text in texts)
    if blank:
        logger.warning("%s: %d of %d texts are blank", where, blank, len(texts))
