"""The one error of this room, and the words that its messages share."""

from collections.abc import Iterable

from lightpeft.errors import LightPeftError, did_you_mean

__all__ = ["TaskError", "did_you_mean", "listed"]


class TaskError(LightPeftError, ValueError):
    """A task, its data or its metrics cannot be used; says what was found and what to do."""


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Names for a message: ``'a', 'b' and 3 more``; ``none`` where there are none."""
    quoted = [repr(name) for name in names]
    if not quoted:
        return "none"
    more = f" and {len(quoted) - limit} more" if len(quoted) > limit else ""
    return ", ".join(quoted[:limit]) + more
