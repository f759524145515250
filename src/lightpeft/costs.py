"""What a model and its layers cost in seconds, bytes or parameters: values that a plan is priced by."""

import bisect
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lightpeft.errors import PlanError

FORMAT_VERSION = 3


@dataclass(frozen=True)
class Curve:
    """What a layer, or something in it, costs with some of its heads or neurons and all of the rest."""

    counts: tuple[int, ...]
    """Units that stay; they ascend, and the last is all of them."""

    costs: tuple[float, ...]
    """Never falls: where a measurement says that fewer units cost more, it is noise."""

    def __post_init__(self) -> None:
        rising = list(self.costs)
        for place in range(len(rising) - 2, -1, -1):
            rising[place] = min(rising[place : place + 2])
        object.__setattr__(self, "costs", tuple(rising))
        ascending = list(self.counts) == sorted(set(self.counts))
        if not self.counts or len(self.counts) != len(self.costs) or not ascending or self.counts[0] < 0:
            raise PlanError(f"a curve of costs has the counts {self.counts} for {len(self.costs)} costs.")
        if not all(math.isfinite(cost) for cost in self.costs):
            raise PlanError(f"a curve of costs has the costs {self.costs}; they have to be finite.")

    def saved(self, count: int) -> float:
        """What goes when only `count` units stay; linear between the counts, and nothing more below them."""
        right = min(bisect.bisect_left(self.counts, count), len(self.counts) - 1)
        left = max(0, right - 1)
        low, high = self.counts[left], self.counts[right]
        share = 1.0 if high == low else min(1.0, max(0.0, (count - low) / (high - low)))
        return self.costs[-1] - (self.costs[left] + share * (self.costs[right] - self.costs[left]))


@dataclass(frozen=True)
class LayerCosts:
    """What one layer costs. One that lies inside another (cross-attention) costs nothing but saves."""

    whole: float
    """With all units and PEFT modules."""

    bare: float
    """Without PEFT modules."""

    heads: Curve | None
    """What it costs, bare, with some of its heads; and so for neurons."""

    neurons: Curve | None
    heads_peft: Curve | None = None
    """What all of its PEFT modules cost with some of the heads, and so for neurons: theirs are the modules'
    inputs and outputs. None where nothing of it was measured."""

    neurons_peft: Curve | None = None


@dataclass(frozen=True)
class Costs:
    """One quantity of one model: the whole, and what each layer has in it."""

    whole: float
    layers: tuple[LayerCosts, ...]
    saved: float = 0.0
    """What of the whole every cut saves, so that no layer has it: the last one runs for the first token."""

    @property
    def rest(self) -> float:
        """What is in no layer: embeddings, heads, loss, the loop around."""
        return self.whole - self.saved - math.fsum(layer.whole for layer in self.layers)


@dataclass(frozen=True)
class CostTable:
    """What was measured of one uncut model with all its PEFT modules, on one device and batch."""

    key: dict[str, Any]
    """What the numbers depend on, as JSON values; with another key they mean nothing."""

    seconds: float
    """How long measuring took, by the clock of the costs."""

    forward: Costs | None
    """Seconds of a forward pass in eval mode; beside `train`, of that in training."""

    train: Costs | None = None
    """Seconds of a forward and backward pass in training."""

    held: Costs | None = None
    """Bytes at the peak of a training step; of a layer its weights and what its backward pass needs."""

    weights: tuple[float, ...] = ()
    """Bytes of the weights per layer, all that a layer without graph holds."""

    def to_dict(self) -> dict[str, Any]:
        """This table as JSON values."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, value: Any) -> "CostTable":
        """Read what `to_dict` wrote.

        Raises:
            PlanError: another version, or malformed.
        """
        if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
            raise PlanError(f"the latency table is not of version {FORMAT_VERSION}.")
        try:
            return cls(
                key=dict(value["key"]),
                seconds=float(value["seconds"]),
                forward=_read_costs(value["forward"]),
                train=_read_costs(value["train"]),
                held=_read_costs(value["held"]),
                weights=tuple(float(one) for one in value["weights"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the latency table is malformed: {error!r}.") from error


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, for the price of all of it."""

    total: int
    """Optimizer steps."""

    before: int
    """Of them those before the cut."""

    each_pass: int | None = None
    """Optimizer steps of a pass over the data; None where nobody knows."""

    batches: int = 1
    """Forward passes of a step."""

    size: float = 1.0
    """What a batch of the run holds on average, over what the one holds that the table is of."""

    freezes: bool = True
    """Whether layers below all trained ones run without a graph."""

    caches: bool = True
    """Whether their outputs are kept for the passes after the first."""

    @property
    def after(self) -> int:
        """Steps after the cut."""
        return self.total - self.before

    @property
    def through_prefix(self) -> int:
        """Steps after the cut in which frozen layers are computed; in the others they come from the cache."""
        if not (self.freezes and self.caches) or self.each_pass is None:
            return self.after
        return min(self.after, self.each_pass)


def _read_costs(value: Any) -> Costs | None:
    if value is None:
        return None
    layers = tuple(
        LayerCosts(
            _number(layer["whole"]),
            _number(layer["bare"]),
            _read_curve(layer["heads"]),
            _read_curve(layer["neurons"]),
            _read_curve(layer["heads_peft"]),
            _read_curve(layer["neurons_peft"]),
        )
        for layer in value["layers"]
    )
    return Costs(_number(value["whole"]), layers, _number(value["saved"]))


def _read_curve(value: Any) -> Curve | None:
    if value is None:
        return None
    return Curve(tuple(int(one) for one in value["counts"]), tuple(_number(one) for one in value["costs"]))


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not finite")
    return number
