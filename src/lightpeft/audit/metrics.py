"""CACC and LFR as proportions with intervals, differences of them, and means over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from lightpeft.audit.errors import AuditError

LEVEL = 0.95


@dataclass(frozen=True)
class Proportion:
    """`hits` of `total` samples."""

    hits: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.total or not self.total:
            raise AuditError(f"{self.hits} of {self.total} is no proportion; check what was counted.")

    @property
    def value(self) -> float:
        """hits / total, 0 to 1."""
        return self.hits / self.total

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Wilson's score interval (Wilson 1927) at a confidence level."""
        found = binomtest(self.hits, self.total).proportion_ci(confidence_level=level, method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class Difference:
    """A difference of two proportions with its interval."""

    value: float
    low: float
    high: float

    @property
    def is_above(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    @property
    def is_below(self) -> bool:
        """Whether the whole interval is below 0: only then may one speak of `under`."""
        return self.high < 0


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation (n - 1); None for a single seed."""

    lowest: float
    highest: float
    count: int


def clean_accuracy(predictions: Sequence[int], labels: Sequence[int]) -> Proportion:
    """CACC: the share of clean samples that are classified right.

    Args:
        predictions, labels: class ids, one a sample.

    Raises:
        AuditError: unequal lengths or no samples.
    """
    _check(predictions, labels)
    return Proportion(sum(p == y for p, y in zip(predictions, labels, strict=True)), len(labels))


def label_flip_rate(predictions: Sequence[int], labels: Sequence[int], target: int) -> Proportion:
    """LFR: the share of triggered samples of other classes that are classified as the target.

    Args:
        predictions, labels: class ids of triggered samples, one each; labels are the true ones, and samples
            of the target class do not count.

    Raises:
        AuditError: unequal lengths, or no sample of another class.
    """
    _check(predictions, labels)
    others = [p for p, y in zip(predictions, labels, strict=True) if y != target]
    if not others:
        raise AuditError(f"all {len(labels)} triggered samples are of the target class {target}: no LFR.")
    return Proportion(sum(p == target for p in others), len(others))


def difference(first: Proportion, second: Proportion, level: float = LEVEL) -> Difference:
    """`first - second`, with the interval of Newcombe (1998), method 10, from both Wilson intervals.

    It is for independent samples. Where both are measured on the same texts, as an LFR and its clean floor
    are, errors go together more often than not, and the interval is then rather too wide than too narrow.
    """
    delta = first.value - second.value
    (low, high), (low_2, high_2) = first.interval(level), second.interval(level)
    return Difference(
        delta,
        delta - math.hypot(first.value - low, high_2 - second.value),
        delta + math.hypot(high - first.value, second.value - low_2),
    )


def over_floor(lfr: Proportion, floor: Proportion, level: float = LEVEL) -> Difference:
    """LFR minus the clean floor: the LFR of a module that was never poisoned, on the same triggered texts.

    A defence brought the LFR under the floor only if `is_below`.
    """
    return difference(lfr, floor, level)


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean and spread of one number over seeds.

    Raises:
        AuditError: no values, or some that are not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise AuditError(f"no mean over the seeds of {list(values)}; all runs must have given a number.")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, min(values), max(values), len(values))


def _check(predictions: Sequence[int], labels: Sequence[int]) -> None:
    if len(predictions) != len(labels) or not len(labels):
        raise AuditError(f"found {len(predictions)} predictions for {len(labels)} labels; give one for each.")
