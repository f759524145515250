"""What was done to a model, kept on the model, so that it can be saved and done again to the same base."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from lightpeft.anatomy import LayerForm, base_of
from lightpeft.plan import Plan

_ATTRIBUTE = "lightpeft_record"


@dataclass(frozen=True, eq=False)
class CutRecord:
    """A plan and the small tensors that together turn the full base into the cut one."""

    plan: Plan
    base: dict[str, str]
    """Digests of the base's weights before the cut, see `base_digests`."""

    gates: dict[str, Tensor] = field(default_factory=dict)
    """Per output projection: folded gates of the surviving input channels, (channels,)."""

    pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Per linear: low-rank pair of what is gone, in the cut shape, (d_out, k) and (k, d_in)."""

    beside: frozenset[str] = frozenset()
    """Linears whose pair is not folded into the weight but added to what it puts out, in float32."""

    constants: dict[str, Tensor] = field(default_factory=dict)
    """Per linear: what PEFT modules that are gone put out always, added to its bias, (d_out,)."""

    row_factors: dict[str, Tensor] = field(default_factory=dict)
    """Per linear: what the rows of its weight are multiplied by (DoRA modules that are gone), (d_out,)."""

    shifts: dict[str, Tensor] = field(default_factory=dict)
    """Per output projection: what compensation added to its bias, (d_out,)."""

    skipped: dict[str, LayerForm] = field(default_factory=dict)
    """Per module of a layer that is skipped: in which form it returns its hidden states."""

    first_token: bool = False
    """Whether the last layer runs for the first token alone above its attention."""

    adapter: str = "default"
    """Name of the adapter that was cut, on this model; a saved one has none."""

    own: frozenset[str] = frozenset()
    """Tensors that a checkpoint stores, as they are after the cut: the base's folder does not give them."""


def record_of(model: nn.Module) -> CutRecord | None:
    """The record of the cut that `model` went through, if any."""
    return getattr(base_of(model), _ATTRIBUTE, None)


WHEN_CUT: list[Callable[[nn.Module], None]] = []
"""What is done to every model as soon as it has a record: later rooms guard its ways out."""


def attach_record(model: nn.Module, record: CutRecord) -> None:
    """Keep `record` on the base model."""
    setattr(base_of(model), _ATTRIBUTE, record)
    for then in WHEN_CUT:
        then(model)
