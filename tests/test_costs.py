"""Costs as values: curves, tables, and their JSON."""

import json
from typing import Any

import pytest

from lightpeft.costs import Costs, CostTable, Curve, LayerCosts, Schedule
from lightpeft.errors import PlanError

CURVE = Curve((0, 4, 8), (1.0, 2.0, 4.0))
LAYER = LayerCosts(4.0, 3.0, CURVE, None)
TABLE = CostTable({"device": "cpu"}, 0.5, Costs(10.0, (LAYER, LAYER)), Costs(30.0, (LAYER, LAYER)))


@pytest.mark.parametrize(("count", "saved"), [(8, 0.0), (6, 1.0), (4, 2.0), (2, 2.5), (0, 3.0)])
def test_a_curve_is_straight_between_its_points(count: int, saved: float) -> None:
    assert CURVE.saved(count) == pytest.approx(saved)


def test_below_its_lowest_point_a_curve_saves_no_more() -> None:
    assert Curve((4, 8), (2.0, 4.0)).saved(1) == 2.0


def test_fewer_units_never_cost_more() -> None:
    noisy = Curve((1, 2, 3, 4), (5.0, 2.0, 3.0, 2.5))
    assert noisy.costs == (2.0, 2.0, 2.5, 2.5)
    assert [noisy.saved(count) for count in (1, 2, 3, 4)] == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("counts", "costs"),
    [((), ()), ((1, 2), (1.0,)), ((2, 1), (1.0, 2.0)), ((-1, 1), (1.0, 2.0)), ((1,), (float("nan"),))],
)
def test_curves_that_are_none(counts: tuple[int, ...], costs: tuple[float, ...]) -> None:
    with pytest.raises(PlanError, match="a curve of costs"):
        Curve(counts, costs)


def test_the_rest_is_what_is_in_no_layer() -> None:
    assert Costs(10.0, (LAYER, LAYER)).rest == pytest.approx(2.0)


def test_a_table_survives_json() -> None:
    assert CostTable.from_dict(json.loads(json.dumps(TABLE.to_dict()))) == TABLE


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 1},
        {"forward": {"whole": 1.0, "layers": []}},
        {"key": None},
        {"forward": 3},
        {"forward": {"whole": float("inf"), "layers": []}},
        {"train": {"whole": 1.0, "layers": [{"whole": 1.0}]}},
        {"weights": "many"},
        {"seconds": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_malformed_tables_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="latency table"):
        CostTable.from_dict(TABLE.to_dict() | change)
    with pytest.raises(PlanError, match="latency table"):
        CostTable.from_dict([])


@pytest.mark.parametrize(
    ("options", "through"),
    [
        ({"each_pass": 20}, 20),
        ({"each_pass": 200}, 90),
        ({"each_pass": None}, 90),
        ({"each_pass": 20, "caches": False}, 90),
        ({"each_pass": 20, "freezes": False}, 90),
    ],
)
def test_frozen_layers_are_computed_in_the_first_pass_after_the_cut(
    options: dict[str, Any], through: int
) -> None:
    assert Schedule(total=100, before=10, **options).through_prefix == through
