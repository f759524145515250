"""When to stop estimating: once the set that would be cut has settled (Early-Bird tickets)."""

from collections import Counter
from typing import Any

from lightpeft.config import EstimationConfig

CutSet = frozenset[tuple[str, str, int]]


class Settled:
    """Compares the sets that would be cut at successive checks."""

    def __init__(self, config: EstimationConfig) -> None:
        self._tolerance, self._patience = config.tolerance, config.patience
        self._previous: CutSet | None = None
        self.in_a_row = 0
        self.change: float | None = None
        """Share of the cut set that changed at the last check, of the kind that changed most."""

    def update(self, cut: CutSet) -> bool:
        """Note the set that would be cut now; True once it has settled."""
        if self._previous is not None:
            self.change = largest_change(self._previous, cut)
            self.in_a_row = self.in_a_row + 1 if self.change <= self._tolerance else 0
        self._previous = cut
        return self.in_a_row >= self._patience

    def state(self) -> dict[str, Any]:
        """What is needed to go on later, as JSON values."""
        previous = None if self._previous is None else sorted(self._previous)
        return {"in_a_row": self.in_a_row, "previous": previous}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.in_a_row = state["in_a_row"]
        if state["previous"] is not None:
            self._previous = frozenset((kind, place, unit) for kind, place, unit in state["previous"])


def largest_change(before: CutSet, after: CutSet) -> float:
    """Share of each kind's cut units in `after` that `before` would have kept; the largest of them."""
    sizes = Counter(kind for kind, _, _ in after)
    new = Counter(kind for kind, _, _ in after - before)
    return max((new[kind] / size for kind, size in sizes.items()), default=0.0)
