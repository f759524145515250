"""Random draws that give the same result on every platform and Python version.

Python promises a stable sequence for ``Random.random()`` only; ``choice``, ``sample`` and
``shuffle`` may change between versions, so they are built here on ``random()`` alone.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


def index_below(rng: Random, count: int) -> int:
    """A uniform integer in ``[0, count)``; ``count`` must be at least 1."""
    return int(rng.random() * count)


def pick(rng: Random, items: Sequence[Item]) -> Item:
    """One item of a non-empty sequence, uniformly."""
    return items[index_below(rng, len(items))]


def pick_weighted(rng: Random, items: Sequence[tuple[int, Item]]) -> Item:
    """One item of ``(weight, item)`` pairs, with probability proportional to its weight."""
    ticket = index_below(rng, sum(weight for weight, _ in items))
    for weight, item in items:
        if ticket < weight:
            return item
        ticket -= weight
    raise AssertionError("the ticket is below the sum of the weights")


def chance(rng: Random, probability: float) -> bool:
    """True with the given probability."""
    return rng.random() < probability


def permutation(rng: Random, count: int) -> list[int]:
    """The integers below ``count`` in random order (Fisher-Yates)."""
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = index_below(rng, last + 1)
        order[last], order[other] = order[other], order[last]
    return order
