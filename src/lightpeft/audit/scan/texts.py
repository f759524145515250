"""The user's own clean texts that a module is scanned with."""

import hashlib
import json
from dataclasses import dataclass

from lightpeft.audit.errors import AuditError
from lightpeft.audit.rows import Rows

MOST = 2000
"""Texts that are used of what is given."""
LEAST = 100
TAUGHT, SEARCHED = 0.6, 0.2
"""Shares of the texts that the own copy learns, and that candidates are searched on; the rest judges."""
JUDGED = 256
"""Texts that accuracy is measured on."""


@dataclass(frozen=True)
class ScanTexts:
    """Clean texts with labels, in an order that means nothing.

    Raises:
        AuditError: too few of all or of a class, or without labels.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.texts) < LEAST or len(self.labels) != len(self.texts):
            raise AuditError(
                f"{self.name} has {len(self.texts)} texts and {len(self.labels)} labels; a scan needs at "
                f"least {LEAST} texts, each with a label."
            )
        seen = {*self.searched.labels} & {*self.judged.labels}
        if missing := sorted({*range(self.classes)} - seen):
            raise AuditError(
                f"{self.name} has too few texts of class {missing[0]}; triggers are searched on "
                f"{SEARCHED:.0%} of the texts and judged on as many, and both need every class."
            )

    @property
    def digest(self) -> str:
        """SHA-256 of texts and labels."""
        return hashlib.sha256(json.dumps([self.texts, self.labels]).encode()).hexdigest()

    @property
    def classes(self) -> int:
        """How many the labels are of."""
        return max(self.labels) + 1

    @property
    def taught(self) -> Rows:
        """What the own copy is trained on, and nothing else is measured on."""
        return self._part(0, TAUGHT)

    @property
    def searched(self) -> Rows:
        """Triggers are searched on these."""
        return self._part(TAUGHT, TAUGHT + SEARCHED)

    @property
    def judged(self) -> Rows:
        """What was found is judged on these."""
        return self._part(TAUGHT + SEARCHED, 1.0)

    def balanced(self) -> Rows:
        """Some that no copy was taught, of every class as many, `JUDGED` at most."""
        rows = self._part(TAUGHT, 1.0)
        of_class = [[row for row, y in enumerate(rows.labels) if y == label] for label in set(rows.labels)]
        count = min(JUDGED // len(of_class), *map(len, of_class))
        return rows.take(sorted(row for found in of_class for row in found[:count]))

    def _part(self, start: float, stop: float) -> Rows:
        count = len(self.texts)
        return Rows({"text": list(self.texts)}, list(self.labels)).take(
            range(round(start * count), round(stop * count))
        )

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
