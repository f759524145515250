"""What a probe cut said about a discovered architecture; it stays with the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedModel

_ATTRIBUTE = "lightpeft_verdict"


@dataclass(frozen=True)
class Verdict:
    """What a probe cut said about a discovered architecture. Keys are those of `part_key`."""

    layouts: Mapping[str, str] = field(default_factory=dict)
    """How a fused projection is laid out, a name in `FUSED_LAYOUTS`."""

    whole_groups: frozenset[str] = frozenset()
    """Where query heads go only with their whole KV group."""

    refused: Mapping[str, str] = field(default_factory=dict)
    """What could not be verified, and why."""


def verdict_of(base: PreTrainedModel) -> Verdict | None:
    """The verdict of a probe on this model, if there was one."""
    return getattr(base, _ATTRIBUTE, None)


def attach_verdict(base: PreTrainedModel, verdict: Verdict) -> None:
    """Keep `verdict` on the model, for every later look at its anatomy."""
    setattr(base, _ATTRIBUTE, verdict)


def part_key(layers: str, part: str) -> str:
    """The name in a `Verdict` of the `heads`, `cross heads` or `neurons` of the stack at `layers`."""
    return f"{layers} {part}"
