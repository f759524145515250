"""The solver on made-up costs: it meets limits, and loses no more score than it must."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightpeft.planning.solver import Choice, Dial, Problem, cheapest, solve, solve_depth

SHARES = (0.3, 0.5, 0.7, 0.9)


def dial(layer: int, scores: Tensor, cost: float) -> Dial:
    """Units of one layer, each at the same cost, the least important first."""
    lost = torch.cat([torch.zeros(1), scores.sort().values.cumsum(0)]).double()
    saved = torch.arange(len(scores) + 1).double() * cost
    return Dial((layer,), lost[:, None], saved[:, None])


def drawn(seed: int, *, layers: int = 3, units: int = 3, skips: bool = False) -> Problem:
    """Layers of two dials, whose units cost 1 and 2, and 1 that no dial saves."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(layers, 2, units, generator=generator)
    return Problem(
        whole=(3.0 * units + 1,) * layers,
        skips=tuple(float(one.sum()) for one in scores) if skips else (None,) * layers,
        stacks=(frozenset(range(layers)),),
        dials=tuple(
            dial(layer, scores[layer, kind], kind + 1.0) for layer in range(layers) for kind in (0, 1)
        ),
        constant=5.0,
        limit=math.inf,
    )


def limited(problem: Problem, share: float) -> Problem:
    limit = share * (problem.constant + sum(problem.whole))
    return replace(problem, limit=limit)


def price(problem: Problem, options: tuple[int, ...], skipped: frozenset[int]) -> tuple[float, float]:
    """Score lost and cost, counted one by one."""
    lost = sum(skip or 0.0 for layer, skip in enumerate(problem.skips) if layer in skipped)
    cost = problem.constant + sum(c for layer, c in enumerate(problem.whole) if layer not in skipped)
    for one, option in zip(problem.dials, options, strict=True):
        for place, layer in enumerate(one.layers):
            if layer not in skipped:
                lost += float(one.lost[option, place])
                cost -= float(one.saved[option, place])
    return lost, cost


def best_of_all(problem: Problem) -> float:
    """The least score lost under the limit, by trying everything."""
    layers = [layer for layer, skip in enumerate(problem.skips) if skip is not None]
    sets = [frozenset(s) for n in range(len(layers) + 1) for s in itertools.combinations(layers, n)]
    choices = itertools.product(*(range(len(one.lost)) for one in problem.dials))
    found = (
        price(problem, options, skipped) for options in choices for skipped in sets[: len(problem.whole) + 1]
    )
    return min(lost for lost, cost in found if cost <= problem.limit)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", range(4))
def test_a_limit_is_met_and_what_is_lost_is_counted(seed: int, share: float, skips: bool) -> None:
    problem = limited(drawn(seed, layers=6, units=20, skips=skips), share)
    choice = solve(problem)
    assert isinstance(choice, Choice)
    lost, cost = price(problem, choice.options, choice.skipped)
    assert (choice.lost, choice.cost) == (pytest.approx(lost), pytest.approx(cost))
    assert cost <= problem.limit
    assert problem.limit - cost <= 2.0  # nothing is left that one more unit would fit into
    assert skips or not choice.skipped


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", range(3))
def test_it_loses_at_most_a_unit_more_than_the_best_choice_of_all(seed: int, share: float) -> None:
    problem = limited(drawn(seed, layers=2), share)
    choice = solve(problem)
    assert isinstance(choice, Choice)
    largest = max(float(one.lost.diff(dim=0).max()) for one in problem.dials)
    assert best_of_all(problem) <= choice.lost + 1e-9
    assert choice.lost <= best_of_all(problem) + largest


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_tighter_limit_loses_more(seed: int, skips: bool) -> None:
    problem = drawn(seed, layers=6, units=20, skips=skips)
    lost = [choice.lost for share in SHARES if (choice := solve(limited(problem, share)))]
    assert lost == sorted(lost, reverse=True)


def test_nothing_is_lost_where_nothing_has_to_be() -> None:
    choice = solve(limited(drawn(0), 1.0))
    assert choice == Choice((0,) * 6, frozenset(), 0.0, 35.0)


def test_a_limit_below_the_cheapest_choice_is_not_met() -> None:
    problem = drawn(0)
    least = cheapest(problem).cost
    assert least == pytest.approx(5 + 3 * 1)
    assert solve(limited(problem, (least + 0.01) / 35)) is not None
    assert solve(limited(problem, (least - 0.01) / 35)) is None


def test_equal_scores_of_nothing_still_meet_the_limit() -> None:
    flat = tuple(dial(layer, torch.zeros(20), 1.0) for layer in range(4))
    problem = limited(Problem((25.0,) * 4, (None,) * 4, (), flat, 0.0, math.inf), 0.5)
    choice = solve(problem)
    assert isinstance(choice, Choice)
    assert choice.cost == pytest.approx(50.0)


def test_a_dial_of_several_layers_turns_in_all_of_them() -> None:
    together = Dial(
        (0, 1),
        torch.tensor([[0.0, 0.0], [1.0, 3.0]]).double(),
        torch.ones(2, 2).double().tril(-1)[:, :1].expand(2, 2),
    )
    problem = Problem((5.0, 5.0), (None, None), (), (together,), 0.0, 9.0)
    choice = solve(problem)
    assert choice == Choice((1,), frozenset(), 4.0, 8.0)


@pytest.mark.parametrize(
    ("limit", "skipped"), [(30.0, set()), (26.0, set()), (24.0, {1}), (20.0, {1}), (9.0, {1, 2})]
)
def test_whole_layers_go_by_score_as_many_as_come_nearest(limit: float, skipped: set[int]) -> None:
    problem = Problem((10.0, 10.0, 10.0), (None, 1.0, 2.0), (frozenset(range(3)),), (), 0.0, limit)
    choice = solve_depth(problem)
    assert isinstance(choice, Choice)
    assert choice.skipped == skipped


def test_a_layer_of_each_stack_stays() -> None:
    stacks = (frozenset({0, 1}), frozenset({2}))
    problem = Problem((10.0, 10.0, 10.0), (1.0, 2.0, 0.5), stacks, (), 0.0, 20.0)
    for choice in (solve_depth(problem), solve(problem)):
        assert isinstance(choice, Choice)
        assert choice.skipped == {0}


def test_whole_layers_cannot_all_go() -> None:
    assert solve_depth(Problem((10.0, 10.0), (1.0, 2.0), (frozenset({0, 1}),), (), 0.0, 4.0)) is None


def test_a_layer_that_is_worth_little_goes_before_units_that_are_worth_more() -> None:
    dials = (dial(0, torch.ones(4), 1.0), dial(1, torch.full((4,), 9.0), 1.0))
    problem = Problem((6.0, 6.0), (0.5, 36.0), (frozenset({0, 1}),), dials, 0.0, 6.0)
    choice = solve(problem)
    assert isinstance(choice, Choice)
    assert (choice.skipped, choice.lost) == ({0}, 0.5)
