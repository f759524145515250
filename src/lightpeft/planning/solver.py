"""The least score lost at a cost: a Lagrange multiplier over dials that give units away step by step."""

import itertools
import math
from dataclasses import dataclass

from torch import Tensor

_BISECTIONS = 60
_ROUNDS = 8
"""Times that whole layers and the units in them are chosen anew at one multiplier, at most."""


@dataclass(frozen=True)
class Dial:
    """The heads, the neurons or both of one layer, or of several that lose equal shares."""

    layers: tuple[int, ...]
    """One for each of its kinds of units: some twice where it is of both."""

    lost: Tensor
    """Score lost, (options, layers), float64; option 0 keeps all."""

    saved: Tensor
    """Cost saved, (options, layers), float64."""


@dataclass(frozen=True)
class Problem:
    """What there is to give away."""

    whole: tuple[float, ...]
    """Cost of each layer with all of its units."""

    skips: tuple[float | None, ...]
    """Score lost with a whole layer; None where it cannot go."""

    stacks: tuple[frozenset[int], ...]
    """Layers of which at least one stays."""

    dials: tuple[Dial, ...]
    constant: float
    """Cost that nothing changes."""

    limit: float


@dataclass(frozen=True)
class Choice:
    """An option of every dial, and the layers that go altogether."""

    options: tuple[int, ...]
    skipped: frozenset[int]
    lost: float
    cost: float


def cheapest(problem: Problem) -> Choice:
    """The choice of the least cost, whatever is lost."""
    return _choice_at(problem, math.inf)


def solve(problem: Problem) -> Choice | None:
    """The least score lost at no more than the limit; None where no choice is that cheap.

    Lagrange's method finds the best choices of all costs that lie on a convex front; what is left between
    the front and the limit is filled up step by step, the most score for its cost first.
    """
    best, low, high = _choice_at(problem, 0.0), 0.0, _scale(problem)
    if best.cost <= problem.limit:
        return best
    best = cheapest(problem)
    if best.cost > problem.limit:
        return None
    while _choice_at(problem, high).cost > problem.limit and high < 1e300:
        low, high = high, high * 8
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = _choice_at(problem, middle)
        if found.cost > problem.limit:
            low = middle
            continue
        high = middle
        best = min(best, found, key=lambda choice: choice.lost)
    return _filled(problem, best)


def solve_depth(problem: Problem) -> Choice | None:
    """Whole layers only: as many, the least score for its cost first, as come nearest to the limit.

    None where even the least that can stay misses the limit by more than half a layer.
    """
    order = sorted(
        (skip / problem.whole[layer] if problem.whole[layer] else math.inf, -layer, layer)
        for layer, skip in enumerate(problem.skips)
        if skip is not None
    )
    full = tuple(0 for _ in problem.dials)
    sets: list[frozenset[int]] = [frozenset()]
    for _, _, layer in order:
        if _leaves_all_stacks(problem, more := sets[-1] | {layer}):
            sets.append(more)
    choices = [_evaluated(problem, full, skipped) for skipped in sets]
    if choices[0].cost <= problem.limit:
        return choices[0]
    best = min(choices, key=lambda choice: abs(choice.cost - problem.limit))
    return best if best.cost - problem.limit <= max(problem.whole) / 2 else None


def _scale(problem: Problem) -> float:
    """A multiplier of the size of score per cost."""
    lost = sum(float(dial.lost.max()) for dial in problem.dials) + sum(filter(None, problem.skips))
    cost = math.fsum(problem.whole)
    return lost / cost / 64 if lost > 0 and cost > 0 else 1.0


def _choice_at(problem: Problem, multiplier: float) -> Choice:
    """The best choice where a unit of cost is worth `multiplier` of score."""
    skipped: frozenset[int] = frozenset()
    for _ in range(_ROUNDS):
        options = tuple(_best_option(dial, skipped, multiplier) for dial in problem.dials)
        found = _worth_skipping(problem, options, multiplier)
        if found == skipped:
            break
        skipped = found
    return _evaluated(problem, options, skipped)


def _best_option(dial: Dial, skipped: frozenset[int], multiplier: float) -> int:
    live = [place for place, layer in enumerate(dial.layers) if layer not in skipped] or [0]
    lost, saved = dial.lost[:, live].sum(1), dial.saved[:, live].sum(1)
    return int((-saved if multiplier == math.inf else lost - multiplier * saved).argmin())


def _worth_skipping(problem: Problem, options: tuple[int, ...], multiplier: float) -> frozenset[int]:
    """The layers that lose less altogether than they would with these options; one of a stack stays."""
    lost, cost = _per_layer(problem, options)
    gains = {
        layer: (lost[layer] - skip) + multiplier * cost[layer] if multiplier < math.inf else cost[layer]
        for layer, skip in enumerate(problem.skips)
        if skip is not None
    }
    chosen: frozenset[int] = frozenset()
    for layer in sorted(gains, key=lambda layer: (-gains[layer], layer)):
        if gains[layer] > 0 and _leaves_all_stacks(problem, chosen | {layer}):
            chosen |= {layer}
    return chosen


def _leaves_all_stacks(problem: Problem, skipped: frozenset[int]) -> bool:
    return all(stack - skipped for stack in problem.stacks)


def _per_layer(problem: Problem, options: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Score lost and cost of each layer with these options, were it not skipped."""
    lost, cost = [0.0] * len(problem.whole), list(problem.whole)
    for dial, option in zip(problem.dials, options, strict=True):
        for layer, gone, saved in zip(
            dial.layers, dial.lost[option].tolist(), dial.saved[option].tolist(), strict=True
        ):
            lost[layer] += gone
            cost[layer] -= saved
    return lost, cost


def _evaluated(problem: Problem, options: tuple[int, ...], skipped: frozenset[int]) -> Choice:
    lost, cost = _per_layer(problem, options)
    live = [layer for layer in range(len(problem.whole)) if layer not in skipped]
    gone = [skip or 0.0 for layer, skip in enumerate(problem.skips) if layer in skipped]
    return Choice(
        options,
        skipped,
        math.fsum([*(lost[layer] for layer in live), *gone]),
        problem.constant + math.fsum(cost[layer] for layer in live),
    )


def _filled(problem: Problem, choice: Choice) -> Choice:
    """Take back what fits under the limit."""
    for layer in sorted(choice.skipped, key=lambda layer: -(problem.skips[layer] or 0.0)):
        back = _evaluated(problem, choice.options, choice.skipped - {layer})
        if back.cost <= problem.limit and back.lost < choice.lost:
            choice = back
    for _ in itertools.count():
        steps = [_step_back(problem, choice, number) for number in range(len(problem.dials))]
        fitting = [(gain, -number) for number, gain in enumerate(steps) if gain is not None]
        if not fitting:
            return choice
        number = -max(fitting)[1]
        options = tuple(option - (place == number) for place, option in enumerate(choice.options))
        choice = _evaluated(problem, options, choice.skipped)
    raise AssertionError


def _step_back(problem: Problem, choice: Choice, number: int) -> float | None:
    """Score won for the cost of one option less of a dial; None where it wins nothing or does not fit."""
    dial, option = problem.dials[number], choice.options[number]
    live = [place for place, layer in enumerate(dial.layers) if layer not in choice.skipped]
    if option == 0 or not live:
        return None
    won = float((dial.lost[option, live] - dial.lost[option - 1, live]).sum())
    more = float((dial.saved[option, live] - dial.saved[option - 1, live]).sum())
    if won < 0 or choice.cost + more > problem.limit:
        return None
    return won / more if more > 0 else math.inf
