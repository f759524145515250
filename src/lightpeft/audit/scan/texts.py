"""The clean texts that a module is scanned with."""

import hashlib
import json
from dataclasses import dataclass

from lightpeft.audit.errors import AuditError
from lightpeft.audit.rows import Rows
from lightpeft.tasks import load_task

MOST = 2000
"""Texts that are used of what is given."""
LEAST = 32
JUDGED = 256
"""Texts that accuracy is measured on."""


@dataclass(frozen=True)
class ScanTexts:
    """Clean texts, with labels or without.

    Raises:
        AuditError: too few.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.texts) < LEAST or len(self.labels) not in (0, len(self.texts)):
            raise AuditError(
                f"{self.name} has {len(self.texts)} texts and {len(self.labels)} labels; a scan needs at "
                f"least {LEAST} texts, and a label for each or none."
            )

    @property
    def digest(self) -> str:
        """SHA-256 of texts and labels: scores compare only on the same ones."""
        return hashlib.sha256(json.dumps([self.texts, self.labels]).encode()).hexdigest()

    @property
    def classes(self) -> int:
        """How many the labels are of; 0 without labels."""
        return max(self.labels, default=-1) + 1

    def balanced(self) -> Rows:
        """Some of those with labels, of every class as many, `JUDGED` at most."""
        of_class = [[row for row, y in enumerate(self.labels) if y == label] for label in set(self.labels)]
        count = min(JUDGED // len(of_class), *map(len, of_class))
        chosen = sorted(row for rows in of_class for row in rows[:count])
        return Rows({"text": list(self.texts)}, list(self.labels)).take(chosen)

    @classmethod
    def of(cls, name: str, rows: Rows, seed: int = 0) -> "ScanTexts":
        """Up to `MOST` rows of the user's own, drawn at random.

        Raises:
            AuditError: pairs of texts, or too few rows.
        """
        if set(rows.texts) != {"text"}:
            raise AuditError(f"{name} has pairs of texts; a scan takes tasks of one text.")
        drawn = rows.shuffled(seed).split(MOST)[0]
        return cls(name, tuple(drawn.texts["text"]), tuple(drawn.labels))

    @classmethod
    def built_in(cls) -> "ScanTexts":
        """Generated sentences, half of reviews and half of nothing in particular, without labels."""
        task = load_task("demo/sentiment", sizes={"train": 200, "validation": 50})
        reviews = [str(text) for text in task.train["text"][:200]]
        mixed = [text for pair in zip(reviews, _neutral(len(reviews)), strict=True) for text in pair]
        return cls("built-in texts", tuple(mixed))


def _neutral(count: int) -> list[str]:
    """Sentences from all combinations of their parts, in a fixed order."""
    people = (
        "my neighbour",
        "the teacher",
        "our guide",
        "a student",
        "the driver",
        "one of them",
        "the clerk",
    )
    acts = (
        "opened the window",
        "read the letter",
        "waited for the train",
        "counted the boxes",
        "made a call",
    )
    times = ("before noon", "on monday", "after the meeting", "in the morning", "last week", "at the station")
    size = len(people) * len(acts) * len(times)
    step = 11
    assert size % step, "the step must visit every combination"
    found = []
    for number in range(count):
        index = number * step % size
        person, rest = people[index % len(people)], index // len(people)
        found.append(f"{person} {acts[rest % len(acts)]} {times[rest // len(acts)]}")
    return found
