"""The errors lightpeft raises on purpose. Each message says what was found and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class LightPeftError(Exception):
    """Base of every error that lightpeft raises on purpose."""

    exit_status: ClassVar[int] = 1
    """What the command line returns when it ends with this error."""


class ConfigError(LightPeftError, ValueError):
    """Options that contradict each other, are out of range, or cannot be met by this run."""

    exit_status: ClassVar[int] = 2


class AnatomyError(LightPeftError, ValueError):
    """A model whose heads, neurons or PEFT modules cannot be found or cut."""


class EstimationError(LightPeftError, RuntimeError):
    """Statistics that cannot be used: not finite, or gathered over no step at all."""


class PlanError(LightPeftError, ValueError):
    """A plan that is impossible, malformed, or made for another model."""


class VerificationError(LightPeftError, RuntimeError):
    """The cut model does not compute what the gated model computed. Nothing was left cut."""


class CheckpointError(LightPeftError, RuntimeError):
    """A light checkpoint that is incomplete, damaged, unknown, or belongs to another base."""


class OutputError(CheckpointError):
    """A place that cannot be written to, or that holds what writing would destroy. Nothing was changed."""


class InUseError(OutputError):
    """A folder that another run has. It can be had when that run ends."""


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
