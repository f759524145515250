"""The one error of this room, and the words that its messages share."""

from collections.abc import Iterable
from difflib import get_close_matches

from lightpeft.errors import LightPeftError


class TaskError(LightPeftError, ValueError):
    """A task, its data or its metrics cannot be used; says what was found and what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'sst2'?`` for the nearest known name, or an empty string."""
    by_lowercase = {candidate.lower(): candidate for candidate in known}
    nearest = get_close_matches(name.lower(), by_lowercase, n=1, cutoff=0.5)
    return f" Did you mean {by_lowercase[nearest[0]]!r}?" if nearest else ""


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Names for a message: ``'a', 'b' and 3 more``; ``none`` where there are none."""
    quoted = [repr(name) for name in names]
    if not quoted:
        return "none"
    more = f" and {len(quoted) - limit} more" if len(quoted) > limit else ""
    return ", ".join(quoted[:limit]) + more
