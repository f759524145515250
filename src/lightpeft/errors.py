"""The errors lightpeft raises on purpose. Each message says what was found and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class LightPeftError(Exception):
    """Base of every error that lightpeft raises on purpose."""


class ConfigError(LightPeftError, ValueError):
    """Options that contradict each other, are out of range, or cannot be met by this run."""


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'sst2'?`` for the nearest known name, or an empty string."""
    by_lowercase = {candidate.lower(): candidate for candidate in known}
    nearest = get_close_matches(name.lower(), by_lowercase, n=1, cutoff=0.5)
    return f" Did you mean {by_lowercase[nearest[0]]!r}?" if nearest else ""
