"""Whether the examples of a run come again."""

_LEAST = 0.05
"""Share of examples that were known, below which keeping them does not pay..."""
_PASSES = 1.25
"""... after so many passes over the data,"""
_UNKNOWN = 50_000
"""or, where nobody knows how many examples there are, after so many of them."""


class Repeats:
    """Counts how many examples were known already.

    Args:
        rows: examples of one pass over the data, if known.
    """

    def __init__(self, rows: int | None) -> None:
        self._enough = _UNKNOWN if rows is None else _PASSES * rows
        self._seen = self._known = 0

    def pay(self, seen: int, known: int) -> bool:
        """Note a batch; False once it shows that examples do not come again."""
        self._seen, self._known = self._seen + seen, self._known + known
        return self._seen <= self._enough or self._known >= _LEAST * self._seen

    def describe(self) -> str:
        """What was found."""
        return f"of {self._seen:,} examples only {self._known:,} had been seen before"
