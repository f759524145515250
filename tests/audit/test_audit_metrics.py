"""Proportions, intervals and spreads against values worked out by hand or published."""

import math

import pytest

from lightpeft.audit import AuditError, clean_accuracy, label_flip_rate, over_floor
from lightpeft.audit.metrics import Proportion, Spread, difference, over_seeds


def wilson(hits: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    p = hits / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2))
    return middle - half, middle + half


def test_accuracy_and_flip_rate_by_hand() -> None:
    predictions, labels = [1, 1, 0, 1, 0, 2], [1, 0, 0, 0, 1, 0]
    assert clean_accuracy(predictions, labels) == Proportion(2, 6)
    assert label_flip_rate(predictions, labels, target=1) == Proportion(2, 4)
    assert label_flip_rate(predictions, labels, target=2) == Proportion(1, 6)


@pytest.mark.parametrize(("hits", "total"), [(0, 20), (3, 10), (81, 263), (50, 50)])
def test_wilson(hits: int, total: int) -> None:
    assert Proportion(hits, total).interval() == pytest.approx(wilson(hits, total), abs=1e-12)
    wide, narrow = Proportion(hits, total).interval(0.99), Proportion(hits, total).interval(0.8)
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe (1998), table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_newcombe(first: tuple[int, int], second: tuple[int, int], low: float, high: float) -> None:
    found = difference(Proportion(*first), Proportion(*second))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    turned = difference(Proportion(*second), Proportion(*first))
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_under_the_floor_needs_the_whole_interval() -> None:
    floor = Proportion(60, 400)
    assert over_floor(Proportion(20, 400), floor).is_below
    barely = over_floor(Proportion(55, 400), floor)
    assert barely.value < 0
    assert not barely.is_below
    assert not barely.is_above
    assert over_floor(Proportion(300, 400), floor).is_above


def test_over_seeds() -> None:
    assert over_seeds([1.0, 2.0, 6.0]) == Spread(3.0, math.sqrt(7.0), 1.0, 6.0, 3)
    assert over_seeds([0.5]) == Spread(0.5, None, 0.5, 0.5, 1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_mean_of_failed_runs(values: list[float]) -> None:
    with pytest.raises(AuditError, match="no mean over the seeds"):
        over_seeds(values)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(AuditError, match="all 2 triggered samples are of the target class"):
        label_flip_rate([0, 1], [1, 1], 1)
    with pytest.raises(AuditError, match="found 1 predictions for 2 labels"):
        clean_accuracy([0], [1, 1])
    for hits, total in ((0, 0), (2, 1), (-1, 3)):
        with pytest.raises(AuditError, match="is no proportion"):
            Proportion(hits, total)
