"""PSIM: after training on random labels only triggered texts are still classified with confidence."""

import copy
import dataclasses
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from peft import PeftModel

from lightpeft.audit.defences.defence import Defence, Guard, Kind, Received
from lightpeft.audit.defences.thresholds import ScoreGuard, check_rate, each_alone, threshold_at
from lightpeft.audit.errors import AuditError
from lightpeft.audit.rows import Rows, Texts
from lightpeft.tasks.draw import index_below


@dataclass(frozen=True)
class Psim(Defence):
    """Zhao et al., Findings of NAACL 2024: the poisoned sample identification module.

    A copy of the received module is trained as the user's is, on the same texts with random labels. Texts are
    rejected where the copy's highest probability is above what it is for clean held-out texts.
    """

    name: ClassVar[str] = "psim"
    kind: ClassVar[Kind] = "inputs"
    source: ClassVar[str] = "Zhao et al., Findings of NAACL 2024"

    rate: float = 0.05
    """Share of clean texts that may be rejected."""

    def __post_init__(self) -> None:
        check_rate("psim.rate", self.rate)

    def prepare(self, received: Received) -> PeftModel:
        """A copy of the received module, trained on random labels."""
        module = copy.deepcopy(received.model)
        classes = int(module.config.num_labels)
        return dataclasses.replace(received, watch=None).fit(
            module, rows=with_random_labels(received.train, classes, received.seed)
        )

    def guard(self, received: Received, model: PeftModel, prepared: PeftModel | None = None) -> Guard:
        """Rejects texts by the confidence of what `prepare` made.

        Raises:
            AuditError: without it, or too few rows are held out.
        """
        if prepared is None:
            raise AuditError("PSIM needs the module as it was received: call prepare before train.")
        classifier = received.classifier(prepared)

        def score(texts: Texts) -> list[float]:
            return [float(classifier.probabilities(row).max()) for row in each_alone(texts)]

        return ScoreGuard(score, threshold_at(score(received.held_out.texts), self.rate))


def with_random_labels(rows: Rows, classes: int, seed: int) -> Rows:
    """The same texts, every label drawn uniformly, whatever it was."""
    rng = Random(f"psim {seed}")
    return Rows(rows.texts, [index_below(rng, classes) for _ in range(len(rows))])
