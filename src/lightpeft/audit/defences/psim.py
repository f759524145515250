"""PSIM: after training on random labels only triggered texts are still classified with confidence."""

import copy
import dataclasses
import math
from dataclasses import dataclass
from random import Random

from peft import PeftModel

from lightpeft.audit.defences.defence import Defence, Guard, Received
from lightpeft.audit.defences.thresholds import ScoreGuard, check_rate, each_alone, threshold_at
from lightpeft.audit.errors import AuditError
from lightpeft.audit.rows import Rows, Texts
from lightpeft.errors import ConfigError
from lightpeft.tasks.draw import index_below


@dataclass(frozen=True)
class Psim(
    Defence, name="psim", kind="inputs", source="Zhao et al. 2024", time="2 trainings, and each text twice"
):
    """Zhao et al., Findings of NAACL 2024: the poisoned sample identification module.

    A copy of the received module is trained like the user's, on the same texts with random labels. Texts are
    rejected where the copy's highest probability is above what it is for clean held-out texts.
    """

    rate: float = 0.05
    """Share of clean texts that may be rejected."""

    learning_rate_factor: float = 0.1
    """The copy's learning rate over the user's. Too high a rate wipes out the trigger too, and leaves nothing
    to tell apart."""

    def __post_init__(self) -> None:
        check_rate("psim.rate", self.rate)
        if not 0 < self.learning_rate_factor < math.inf:
            raise ConfigError(
                f"psim.learning_rate_factor is {self.learning_rate_factor!r}; give a positive number."
            )

    def prepare(self, received: Received) -> PeftModel:
        """A copy of the received module, trained on random labels."""
        module = copy.deepcopy(received.model)
        classes = int(module.config.num_labels)
        rows = with_random_labels(received.train, classes, received.seed)
        rate = received.training.learning_rate * self.learning_rate_factor
        training = dataclasses.replace(received.training, learning_rate=rate)
        return dataclasses.replace(received, watch=None).fit(module, rows=rows, training=training)

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
