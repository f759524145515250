"""The columns of one split: whether they are there, and texts that are texts."""

import logging
from dataclasses import replace
from typing import Any

from lightpeft.errors import did_you_mean, listed
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.files import Table
from lightpeft.tasks.labels import is_unicode
from lightpeft.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)

Columns = dict[str, list[Any]]

TEXTS = ("text", "text_pair")
"""The text columns of a split."""


def checked_texts(names: tuple[str, ...], table: Table) -> Columns:
    """The one or two text columns of a split, as `text` and `text_pair`.

    Raises:
        TaskError: a missing column, no rows, or a text that is missing or no string.
    """
    columns: Columns = {}
    for key, name in zip(TEXTS, names, strict=False):
        columns[key] = filled_column(table, name)
        check_strings(columns[key], f"{table.where}, column {name!r}")
    return columns


def filled_column(table: Table, name: str) -> list[Any]:
    """The values of a column, at least one.

    Raises:
        TaskError: there is no such column, or it has no rows.
    """
    values = column(table, name)
    if not values:
        raise TaskError(f"{table.where} is empty: columns but no rows; check the file")
    return values


def rewritten(spec: TaskSpec, table: Table) -> Table:
    """The rows of the task that the rows of its data stand for.

    Raises:
        TaskError: a column is missing, or a value that rows cannot be made of; names the row.
    """
    if spec.rewrite is None:
        return table
    names = spec.rewrite.columns
    rows: list[dict[str, Any]] = []
    for number, values in enumerate(zip(*(column(table, name) for name in names), strict=True), start=1):
        try:
            rows += spec.rewrite.make(**dict(zip(names, values, strict=True)))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise TaskError(
                f"{table.where}, row {number}: {', '.join(names)} are not as {spec.name} has them "
                f"({type(error).__name__}: {error})"
            ) from error
    made = tuple(dict.fromkeys(name for row in rows for name in row))
    return replace(table, names=made, column=lambda name: [row[name] for row in rows])


def column(table: Table, name: str) -> list[Any]:
    """The values of a column.

    Raises:
        TaskError: there is no such column; names the nearest one, and all of them.
    """
    if not table.names:
        raise TaskError(f"{table.where} is empty: no columns and no rows; check the file")
    if name not in table.names:
        hint = did_you_mean(name, table.names)
        raise TaskOptionError(
            f"{table.where} has no column {name!r}.{hint} Its columns: {listed(table.names)}"
        )
    return table.column(name)


def check_strings(texts: list[Any], where: str) -> None:
    """Refuse what is no text, and say how many are blank.

    Raises:
        TaskError: names the first row.
    """
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
