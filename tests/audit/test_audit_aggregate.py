"""Groups over seeds, their floors and costs, and what is missing; against numbers worked out by hand."""

import dataclasses

import pytest
from tests.support.audit_cells import cell_of, grid, share

from lightpeft.audit.errors import AuditError
from lightpeft.audit.grid.cell import Cell, Point
from lightpeft.audit.grid.report import Group, group_cells, missing_cells
from lightpeft.audit.grid.report.aggregate import (
    along_training,
    by_data,
    by_setting,
    similarity_along_training,
)
from lightpeft.audit.grid.report.group import pool
from lightpeft.audit.metrics import Proportion


def only(cells: list[Cell], attack: str = "vanilla", defence: str = "none") -> Group:
    found = [g for g in group_cells(cells) if (g.key.attack, g.key.defence) == (attack, defence)]
    assert len(found) == 1
    return found[0]


def test_seeds_are_pooled_and_spread() -> None:
    group = only([cell_of(seed=2, lfr=40, total=100, cacc=9), cell_of(seed=1, lfr=30, total=50, cacc=9)])
    assert group.seeds == (1, 2)
    assert group.lfr.pooled == Proportion(70, 150)
    assert group.lfr.spread.mean == pytest.approx(0.5)  # (0.6 + 0.4) / 2
    assert group.lfr.spread.deviation == pytest.approx(0.1 * 2**0.5)


@pytest.mark.parametrize("missing", range(3))
def test_a_number_that_one_seed_lacks_is_none(missing: int) -> None:
    cells = [cell_of(seed=seed, rejected_clean=share(5)) for seed in range(3)]
    assert only(cells).rejected_clean is not None
    cells[missing] = dataclasses.replace(
        cells[missing],
        attacked=None,
        rejected_clean=None,
        rejected_triggered=None,
        triggers_left=None,
        curve=(Point(5, share(1), share(1)),),
    )
    group = only(cells)
    found = (
        group.attacked,
        group.received,
        group.triggers_left,
        group.rejected_clean,
        group.rejected_triggered,
    )
    assert found == (None,) * 5


def test_before_and_received_come_from_their_own_points() -> None:
    group = only([cell_of()])
    assert group.attacked is not None
    assert group.received is not None
    assert (group.attacked.pooled, group.received.pooled) == (share(990), share(980))


def test_the_floor_is_the_clean_cells_under_this_attacks_trigger() -> None:
    clean = cell_of("clean", lfr=5, floor={"vanilla": 100, "other": 400})
    found = {g.key.attack: g for g in group_cells([clean, cell_of(lfr=700), cell_of("other", lfr=700)])}
    assert found["vanilla"].floor is not None
    assert found["vanilla"].floor.pooled == share(100)
    assert found["vanilla"].over_floor is not None
    assert found["vanilla"].over_floor.value == pytest.approx(0.6)
    assert found["other"].over_floor is not None
    assert found["other"].over_floor.value == pytest.approx(0.3)
    assert found["clean"].over_floor is None
    assert {a: f.pooled.hits for a, f in found["clean"].floors_of_attacks.items()} == {
        "vanilla": 100,
        "other": 400,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"form": "parallel"},
        {"scenario": "module_as_is"},
        {"attacker_task": "demo/c"},
        {"user_task": "demo/c"},
        {"floor": {"other": 100}},
        {"defence": "onion"},
    ],
)
def test_a_clean_cell_of_anything_else_is_no_floor(change: dict[str, object]) -> None:
    clean = cell_of("clean", **({"floor": {"vanilla": 100}} | change))  # type: ignore[arg-type]
    group = only([clean, cell_of()])
    assert group.floor is group.over_floor is group.verdict is None
    assert group.seeds_without_floor == (0,)
    assert group.runs_above == (0, 0)


def test_seeds_without_a_floor_are_left_out_of_the_difference_only() -> None:
    cells = [cell_of(seed=0, lfr=300), cell_of(seed=1, lfr=900), cell_of("clean", floor={"vanilla": 100})]
    group = only(cells)
    assert group.seeds_without_floor == (1,)
    assert group.lfr.pooled == share(1200, 2000)
    assert group.over_floor is not None
    assert group.over_floor.value == pytest.approx(0.2)
    assert group.runs_above == (1, 1)


@pytest.mark.parametrize(
    ("lfr", "verdict"),
    [
        (700, "above the floor"),
        (110, "not distinguishable from the floor"),
        (100, "not distinguishable from the floor"),
        (90, "not distinguishable from the floor"),
        (30, "below the floor"),
    ],
)
def test_the_verdict_is_the_intervals(lfr: int, verdict: str) -> None:
    group = only([cell_of(lfr=lfr), cell_of("clean", floor={"vanilla": 100})])
    assert group.verdict == verdict
    assert group.runs_above == (int(verdict == "above the floor"), 1)


def test_runs_are_held_against_their_own_floors() -> None:
    """Seed 1 is high, but so is its floor."""
    cells = [cell_of(seed=0, lfr=400), cell_of(seed=1, lfr=400)]
    cells += [cell_of("clean", seed=seed, floor={"vanilla": 100 + 300 * seed}) for seed in (0, 1)]
    assert only(cells).runs_above == (1, 2)


def test_the_cost_is_cacc_without_minus_cacc_with_over_common_seeds() -> None:
    cells = [cell_of(seed=0, cacc=900), cell_of(seed=1, cacc=800)]
    cells += [cell_of(defence="fresh", seed=seed, cacc=cacc) for seed, cacc in ((0, 850), (1, 790), (2, 10))]
    group = only(cells, defence="fresh")
    assert group.cost is not None
    assert group.cost.value == pytest.approx((1700 - 1640) / 2000)
    assert group.cost.low < group.cost.value < group.cost.high
    assert group.seeds_without_undefended == (2,)
    assert only(cells).cost is None


def test_a_defence_without_its_undefended_cell_has_no_cost() -> None:
    group = only([cell_of(defence="fresh")], defence="fresh")
    assert group.cost is None
    assert group.seeds_without_undefended == (0,)


def test_groups_are_in_order_whatever_the_order_of_cells() -> None:
    cells = grid()
    groups = group_cells(cells)
    assert groups == group_cells(cells[::-1])
    names = [(g.key.form, g.key.attack, g.key.defence) for g in groups]
    assert names[0] == ("lora", "clean", "none")
    defences = ["none", "fresh", "onion"]
    for form in ("lora", "sequential"):
        for attack in ("gradient_control", "vanilla"):
            assert [d for f, a, d in names if (f, a) == (form, attack)] == defences
    assert len(by_data(groups)) == 1
    assert [len(found) for found in by_setting(groups)] == [1, 3, 3] * 2


def test_one_key_twice_and_no_cells_are_refused() -> None:
    with pytest.raises(AuditError, match="two cells are module_continued--demo_a"):
        group_cells([cell_of(), cell_of(lfr=1)])
    with pytest.raises(AuditError, match="no cells"):
        group_cells([])


def test_a_whole_grid_lacks_nothing() -> None:
    assert missing_cells(grid()) == {}


@pytest.mark.parametrize("index", range(len(grid())))
def test_every_cell_that_is_taken_away_is_missed_by_name(index: int) -> None:
    cells = grid()
    taken = cells.pop(index).key
    assert missing_cells(cells) == {dataclasses.replace(taken, seed=0): (taken.seed,)}


def test_an_attack_without_clean_cells_lacks_them_and_clean_needs_no_defences() -> None:
    missing = missing_cells([cell_of(), cell_of(defence="fresh"), cell_of(defence="fresh", seed=1)])
    names = {(key.attack, key.defence): seeds for key, seeds in missing.items()}
    assert names == {("clean", "none"): (0, 1), ("vanilla", "none"): (1,)}


def test_curves_are_over_the_steps_that_all_seeds_have() -> None:
    points = {0: ((0, 10), (5, 20), (9, 40)), 1: ((0, 30), (9, 60), (11, 70))}
    cells = [
        cell_of(seed=seed, curve=tuple(Point(step, share(1), share(lfr, 100)) for step, lfr in found))
        for seed, found in points.items()
    ]
    moments = along_training(cells, lambda point: point.lfr)
    assert [(m.step, round(m.spread.mean, 9)) for m in moments] == [(0, 0.2), (9, 0.5)]
    assert (moments[1].spread.lowest, moments[1].spread.highest) == (0.4, 0.6)


def test_similarity_is_over_common_steps_too() -> None:
    cells = [cell_of(seed=0, similarity=((0, 1.0), (4, 0.5))), cell_of(seed=1, similarity=((4, 0.7),))]
    assert [(m.step, m.spread.mean) for m in similarity_along_training(cells)] == [(4, pytest.approx(0.6))]


def test_pool_of_nothing_is_none() -> None:
    assert pool([]) is None
