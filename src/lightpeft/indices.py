"""Sets of unit indices as short text: `0-3,5,8-11`."""

import re
from collections.abc import Iterable
from itertools import pairwise

from lightpeft.errors import PlanError

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def format_indices(indices: Iterable[int]) -> str:
    """Ascending indices as comma-separated ranges; no index gives an empty text."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_indices(text: str, count: int, what: str) -> tuple[int, ...]:
    """Read what `format_indices` wrote, for units numbered 0 to `count - 1`.

    Raises:
        PlanError: not such a text, or an index that is out of range, duplicated or out of order.
    """
    found: list[int] = []
    for part in text.split(",") if text else []:
        match = _RANGE.fullmatch(part)
        if match is None:
            raise PlanError(f"{what}: {part!r} is not an index or a range of indices.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise PlanError(f"{what}: the range {part!r} runs backwards.")
        if last >= count:
            raise PlanError(f"{what}: index {last} is out of range, there are only {count}.")
        found.extend(range(first, last + 1))
    for before, after in pairwise(found):
        if after == before:
            raise PlanError(f"{what}: index {after} is duplicated.")
        if after < before:
            raise PlanError(f"{what}: index {after} comes after {before}; indices must ascend.")
    return tuple(found)
