"""Which of a task's rows a benchmark takes."""

import dataclasses

from datasets import Dataset

from lightpeft.config import check_at_least
from lightpeft.errors import ConfigError
from lightpeft.tasks import TaskData
from lightpeft.tasks.kinds.candidates import GROUP


def select_rows(
    task: TaskData, min_words: int = 0, train_rows: int | None = None, validation_rows: int | None = None
) -> TaskData:
    """The task with training rows of at least `min_words` words, the first `train_rows` of a fixed shuffle.

    Args:
        validation_rows: the first so many of a fixed shuffle of the validation rows; by default all, as
            they are.

    Raises:
        ConfigError: no row is that long, or rows are no texts, or validation rows belong together.
    """
    check_at_least("min_words", min_words, 0)
    for name, rows_wanted in (("train_rows", train_rows), ("validation_rows", validation_rows)):
        if rows_wanted is not None:
            check_at_least(name, rows_wanted, 1)
    rows = task.train
    if min_words:
        if "text" not in rows.column_names:
            raise ConfigError(f"{task.spec.name} has no column of texts to count words in (min_words).")
        long_enough = [row for row, text in enumerate(rows["text"]) if _words(text) >= min_words]
        if not long_enough:
            raise ConfigError(
                f"no training row of {task.spec.name} has {min_words} words (min_words); ask for fewer."
            )
        rows = rows.select(long_enough)
    return dataclasses.replace(
        task, train=_first(rows, train_rows), validation=_validation(task, validation_rows)
    )


def _validation(task: TaskData, wanted: int | None) -> Dataset:
    if wanted is None:
        return task.validation
    if GROUP in task.validation.column_names:
        raise ConfigError(
            f"{task.spec.name} is scored by whole questions, of which each has several rows; leave "
            "validation_rows out."
        )
    return _first(task.validation, wanted)


def _first(rows: Dataset, wanted: int | None) -> Dataset:
    """Of a fixed shuffle."""
    return rows.shuffle(seed=0).select(range(len(rows) if wanted is None else min(wanted, len(rows))))


def _words(text: str | list[str]) -> int:
    """Of a text, or of one that is given as words."""
    return len(text.split() if isinstance(text, str) else text)
