"""Labelled texts in plain lists: what the audit poisons, trains on and measures on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from datasets import Dataset

from lightpeft.audit.choices import HeldOutFrom
from lightpeft.audit.errors import AuditError
from lightpeft.config import check_at_least
from lightpeft.errors import ConfigError
from lightpeft.tasks import TaskData
from lightpeft.tasks.draw import permutation

Texts = Mapping[str, Sequence[str]]
"""One or two columns of equal length, `text` and perhaps `text_pair`."""


@dataclass(frozen=True)
class Rows:
    """Labelled texts."""

    texts: dict[str, list[str]]
    """One or two columns of n texts, `text` and perhaps `text_pair`."""

    labels: list[int]
    """n class ids."""

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.texts.items()}
        if "text" not in lengths or set(lengths.values()) != {len(self.labels)}:
            raise AuditError(
                f"rows need a column `text` and as many labels; found {lengths}, {len(self.labels)} labels."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int]) -> "Rows":
        """These rows, in this order."""
        texts = {name: [column[row] for row in rows] for name, column in self.texts.items()}
        return Rows(texts, [self.labels[row] for row in rows])

    def shuffled(self, seed: int) -> "Rows":
        """All rows in another order."""
        return self.take(permutation(Random(f"shuffle {seed}"), len(self)))

    def split(self, count: int) -> tuple["Rows", "Rows"]:
        """The first `count` rows, and the rest."""
        return self.take(range(min(count, len(self)))), self.take(range(count, len(self)))

    def dataset(self) -> Dataset:
        """As `lightpeft.tasks.encode` takes it."""
        return Dataset.from_dict({**self.texts, "label": self.labels})

    @classmethod
    def of(cls, split: Dataset) -> "Rows":
        """The rows of a split of `lightpeft.tasks.TaskData`."""
        names = [name for name in ("text", "text_pair") if name in split.column_names]
        return cls({name: list(split[name][:]) for name in names}, [int(y) for y in split["label"][:]])


@dataclass(frozen=True)
class AuditTask:
    """One side's data: the attacker's or the user's."""

    name: str
    class_names: tuple[str, ...]
    train: Rows
    held_out: Rows
    """Clean rows that nothing is trained on: thresholds of defences are set on them."""

    test: Rows
    """CACC is measured on it, and LFR on what `triggered_test` makes of it."""

    @classmethod
    def of(
        cls,
        task: TaskData,
        *,
        train: int | None = None,
        held_out: int = 200,
        held_out_from: HeldOutFrom = "train",
        test: int | None = None,
        words: int | None = None,
        from_end: bool = False,
        min_words: int = 0,
        seed: int = 0,
    ) -> "AuditTask":
        """The three sets of a task; `test` is taken from the validation split.

        Args:
            held_out_from: the split that `held_out` is taken from. Thresholds hold only for texts like these:
                where validation texts are of another kind than training texts, take them from there.
            train, held_out, test: rows of each, drawn at random; None takes all that are left.
            words: keep the first so many words of every text, before any trigger is put in; `from_end` the
                last.
            min_words: leave out training texts with fewer words.

        Raises:
            ConfigError: numbers out of range, or `from_end` without `words`.
            AuditError: a regression, or too few rows.
        """
        _check_counts(train=train, held_out=held_out, test=test, words=words, min_words=min_words)
        if from_end and words is None:
            raise ConfigError(
                "from_end would have no effect: all words are kept. Give words, or leave it out."
            )
        if not task.has_classes:
            raise AuditError(
                f"{task.spec.name} has no classes; a backdoor of this kind needs a target class."
            )
        rows, tests = Rows.of(task.train), Rows.of(task.validation).shuffled(seed)
        rows = rows.take(
            [row for row, text in enumerate(rows.texts["text"]) if len(text.split()) >= min_words]
        )
        rows = rows.shuffled(seed)
        source = rows if held_out_from == "train" else tests
        if len(source) <= held_out or not len(rows):
            raise AuditError(
                f"{task.spec.name} has {len(rows)} training rows of {min_words} words or more, {len(tests)} "
                f"for validation; {held_out} of {held_out_from} are held out for thresholds. Lower held_out."
            )
        held, rest = source.split(held_out)
        if held_out_from == "train":
            rows = rest
        else:
            tests = rest
        for name, wanted, found in (("train", train, len(rows)), ("test", test, len(tests))):
            if wanted is not None and wanted > found:
                raise AuditError(
                    f"{name} asks for {wanted} rows of {task.spec.name}, and {found} are left; lower it, or "
                    "leave it out to take all."
                )
        sets = (rows.split(len(rows) if train is None else train)[0], held)
        shown = tests.split(len(tests) if test is None else test)[0]
        return cls(
            task.spec.name,
            task.class_names,
            *(_shortened(one, words, from_end) for one in (*sets, shown)),
        )


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None:
            check_at_least(name, count, 0 if name in ("held_out", "min_words") else 1)


def _shortened(rows: Rows, words: int | None, from_end: bool) -> Rows:
    if words is None:
        return rows
    kept = slice(-words, None) if from_end else slice(words)
    texts = {name: [" ".join(text.split()[kept]) for text in column] for name, column in rows.texts.items()}
    return Rows(texts, rows.labels)
