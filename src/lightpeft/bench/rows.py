"""Which of a task's training rows a benchmark takes."""

import dataclasses

from lightpeft.config import check_at_least
from lightpeft.errors import ConfigError
from lightpeft.tasks import TaskData


def select_rows(task: TaskData, min_words: int = 0, train_rows: int | None = None) -> TaskData:
    """The task with training rows of at least `min_words` words, the first `train_rows` of a fixed shuffle.

    Raises:
        ConfigError: no row is that long, or rows are no texts.
    """
    check_at_least("min_words", min_words, 0)
    if train_rows is not None:
        check_at_least("train_rows", train_rows, 1)
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
    rows = rows.shuffle(seed=0)
    wanted = len(rows) if train_rows is None else min(train_rows, len(rows))
    return dataclasses.replace(task, train=rows.select(range(wanted)))


def _words(text: str | list[str]) -> int:
    """Of a text, or of one that is given as words."""
    return len(text.split() if isinstance(text, str) else text)
