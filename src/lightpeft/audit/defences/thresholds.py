"""Thresholds that let through a wanted share of clean inputs, set on clean rows that were held out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lightpeft.audit.defences.defence import Guard, Screened
from lightpeft.audit.errors import AuditError
from lightpeft.audit.rows import Texts
from lightpeft.errors import ConfigError

Score = Callable[[Texts], list[float]]
"""n texts -> n numbers, each from its own text alone: the higher, the more suspect."""


def check_rate(name: str, rate: float) -> None:
    """Refuse what is no share in (0, 1).

    Raises:
        ConfigError: it is.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
        raise ConfigError(f"{name} is {rate!r}; give a share in (0, 1).")


def least_scores(rate: float) -> int:
    """How many clean scores a threshold at this false-rejection rate takes: 19 at 0.05."""
    return -(-1 // _exact(rate)) - 1


def threshold_at(scores: Sequence[float], rate: float, what: str = "clean held-out texts") -> float:
    """The score that a further clean input exceeds with a probability of at most `rate`.

    It is the ⌈(n + 1)(1 - rate)⌉-th smallest of n scores, the quantile of split conformal prediction (Vovk et
    al. 2005), which holds for every n as long as clean inputs are exchangeable with those of the scores.
    Rejected is what is strictly above it, so ties only make fewer rejections.

    Args:
        scores: of clean inputs that nothing was trained on.
        rate: false-rejection rate, in (0, 1).
        what: what was scored, for the message.

    Raises:
        AuditError: too few scores for the rate, or some that are no numbers.
    """
    if any(score != score for score in scores):
        raise AuditError(f"some scores of {what} are not numbers (nan); the model may have diverged.")
    count, least = len(scores), least_scores(rate)
    if count < least:
        raise AuditError(
            f"a threshold at a false-rejection rate of {rate} takes {least} {what}, found {count}; "
            "hold out more rows, or give a higher rate."
        )
    rejected = int((count + 1) * _exact(rate))
    return sorted(scores)[count - rejected]


def each_alone(texts: Texts) -> Iterator[dict[str, list[str]]]:
    """Every row on its own, so that nothing of it can depend on its neighbours."""
    for row in range(len(texts["text"])):
        yield {name: [column[row]] for name, column in texts.items()}


@dataclass(frozen=True)
class ScoreGuard(Guard):
    """Rejects texts whose score is above a threshold."""

    score: Score
    threshold: float

    def screen(self, texts: Texts) -> Screened:
        """The texts as they are, some rejected."""
        columns = {name: list(column) for name, column in texts.items()}
        return Screened(columns, [score > self.threshold for score in self.score(texts)])


def _exact(rate: float) -> Fraction:
    """A rate as it is written: 0.05 is 1/20."""
    return Fraction(str(rate))
