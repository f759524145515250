"""The units of a layer in blocks that stay or go together, by their scores."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lightpeft.anatomy import Units
from lightpeft.config import Budget
from lightpeft.errors import PlanError


@dataclass(frozen=True)
class Blocks:
    """The units of one layer in blocks that stay or go together, the most important block first."""

    where: str
    units: int
    blocks: tuple[tuple[int, ...], ...]
    values: tuple[float, ...]
    """Mean score per block; descends."""

    floor: int
    """Blocks that stay in any case."""

    counts: tuple[int, ...] | None = None
    """How many blocks may stay, ascending; None for any number."""

    @property
    def block_size(self) -> int:
        """Units per block."""
        return len(self.blocks[0])

    def best(self, count: int) -> tuple[int, ...]:
        """The units of the most important blocks, ascending."""
        return tuple(sorted(unit for block in self.blocks[:count] for unit in block))

    def allowed(self, count: int, wanted: float | None = None) -> int:
        """`count`, or, where not any number of blocks may stay, the nearest to `wanted`; of two the larger.

        Args:
            wanted: by default `count`.
        """
        if self.counts is None:
            return count
        aim = count if wanted is None else wanted
        return min((one for one in self.counts if one >= self.floor), key=lambda one: (abs(one - aim), -one))


def blocks_of(where: str, units: Units | None, scores: list[float], budget: Budget) -> Blocks | None:
    """The units of a layer in blocks, by their mean score; none where nothing can go."""
    if units is None:
        return None
    if units.fixed is not None:
        return Blocks(where, units.count, (), (), 0)
    if units.kind == "heads":
        blocks, floor = _head_blocks(units, scores, budget), budget.min_heads
    else:
        blocks, floor = _neuron_blocks(where, scores, budget.align_neurons), budget.min_neurons
    means = {block: math.fsum(scores[unit] for unit in block) / len(block) for block in blocks}
    order = sorted(means, key=lambda block: (-means[block], block))
    units_that_stay = max(floor, 0 if units.removable else 1)
    least = math.ceil(units_that_stay / len(order[0])) if order else 0
    values = tuple(means[block] for block in order)
    counts = None
    if budget.uniform and units.divides is not None and order:
        size = len(order[0])
        counts = tuple(n for n in range(1, len(order) + 1) if units.divides % (n * size) == 0)
    return Blocks(where, units.count, tuple(order), values, min(least, len(order)), counts)


def _head_blocks(units: Units, scores: list[float], budget: Budget) -> list[tuple[int, ...]]:
    """Heads one by one; with KV groups whole groups, or the best of each group, the second best, ..."""
    groups = [tuple(range(start, start + units.group)) for start in range(0, units.count, units.group)]
    splits = units.splits_groups and (budget.kv_groups == "equal" or len(groups) == 1)
    if units.group == 1 or not splits:
        return groups
    ranked = [by_score(group, scores) for group in groups]
    return list(zip(*ranked, strict=True))


def _neuron_blocks(where: str, scores: list[float], size: int) -> list[tuple[int, ...]]:
    """Neurons `size` by `size` in the order of their scores."""
    if len(scores) < size:
        raise PlanError(f"{where} has {len(scores)} neurons, fewer than the {size} of budget.align_neurons.")
    order = by_score(range(len(scores)), scores)
    starts = range(0, len(scores) - len(scores) % size, size)
    return [tuple(order[start : start + size]) for start in starts]


def by_score(units: Iterable[int], scores: list[float]) -> list[int]:
    """The most important first; ties go to the lower index."""
    return sorted(units, key=lambda unit: (-scores[unit], unit))
