"""The scores to choose from: four tables, of heads and neurons, of PEFT modules, of ranks, and of layers.

A row is a name, a function, and the statistics that the function reads: only those are gathered. Higher is
more important. What can be chosen in a configuration is what is in these tables, and known without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lightpeft.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GRADIENT_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "gradient": lambda gradient: gradient,
    "square": lambda gradient: gradient.square(),
}
"""What can be summed over the steps of ∂L/∂m, the gradient of a gate m = 1 in front of a unit, by name; of 0
it must be 0. A module's gate is in front of all of its ranks."""

SHARE = "share"
"""The statistic of modules that is no gradient: ‖ΔWx‖₂/‖Wx‖₂ or its like, over the tokens that count."""

SIMILARITY = "similarity"
"""The statistic of layers: the cosine between the hidden states before and after one, over the tokens that
count."""


FLUCTUATION = "fluctuation"
"""The statistic of heads and neurons that is no gradient: the mean square of what their layer's output loses
where they go and their means stay, over that of the hidden states that enter the layer."""


@dataclass(frozen=True)
class Units:
    """The heads or the neurons of one layer."""

    means: Mapping[str, Tensor]
    """Per statistic that the row needs its mean, (units,), float32."""

    gates: Tensor
    """(units,); 1 unless the row trains them."""

    norms: Callable[[], Tensor]
    """L2 norm of all weights of each unit, (units,)."""

    generator: torch.Generator
    """Seeded by `estimation.seed`, for all layers one after the other."""


@dataclass(frozen=True)
class Module:
    """One PEFT module."""

    means: Mapping[str, Tensor]
    """Per statistic that the row needs its mean, scalars."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of one PEFT module."""

    means: Mapping[str, Tensor]
    """Per statistic that the row needs its mean over the steps, (rank,), float32."""

    widths: tuple[int, int]
    """Channels of the module in and out."""


@dataclass(frozen=True)
class Layer:
    """One layer of the model."""

    means: Mapping[str, Tensor]
    """Per statistic that the row needs its mean, scalars."""

    units: Tensor
    """The base scores of all heads and neurons in the layer, (units,)."""


Known = TypeVar("Known", Units, Module, Ranks, Layer)


@dataclass(frozen=True)
class Score(Generic[Known]):
    """A row.

    Raises:
        ConfigError: it needs a statistic that nobody gathers.
    """

    name: str
    function: Callable[[Known], Tensor]
    """What is known of some units -> one number a unit; of a module a scalar."""

    statistics: tuple[str, ...] = ()
    """Of `GRADIENT_STATISTICS`, or `fluctuation` of heads and neurons, `share` of modules, `similarity` of
    layers. A score without any does not depend on the steps, but a layer's through those of its units."""

    trains_gates: bool = False
    """Heads and neurons only: gates that multiply, trained beside the PEFT modules."""

    of_loss: bool = False
    """Heads and neurons only: the score is of the loss, so that those of both kinds can be added up."""

    def __post_init__(self) -> None:
        known = (*GRADIENT_STATISTICS, FLUCTUATION, SHARE, SIMILARITY)
        for name in self.statistics:
            if name not in known:
                raise ConfigError(
                    f"score {self.name!r} needs the statistic {name!r}.{did_you_mean(name, known)} There are "
                    f"{', '.join(known)}."
                )

    @property
    def gradients(self) -> tuple[str, ...]:
        """The statistics of the gate's gradient."""
        return tuple(name for name in self.statistics if name in GRADIENT_STATISTICS)


def _table(*rows: Score[Known]) -> dict[str, Score[Known]]:
    return {row.name: row for row in rows}


def _random(units: Units) -> Tensor:
    import torch

    return torch.rand(len(units.gates), generator=units.generator)


def _paper(ranks: Ranks) -> Tensor:
    """|mean_j A_rj ∂L/∂A_rj| + |mean_i B_ir ∂L/∂B_ir|, in which both sums are the rank's gradient."""
    return ranks.means["gradient"].abs() * sum(1 / width for width in ranks.widths)


BASE_SCORES: dict[str, Score[Units]] = _table(
    Score("mask", lambda units: units.gates.abs(), trains_gates=True),
    # FLAP (An et al. 2024), here relative to the hidden states, so that layers can be compared.
    Score("fluctuation", lambda units: units.means[FLUCTUATION], (FLUCTUATION,)),
    Score("taylor", lambda units: units.means["gradient"].abs(), ("gradient",), of_loss=True),
    Score("fisher", lambda units: units.means["square"], ("square",), of_loss=True),
    Score("magnitude", lambda units: units.norms()),
    Score("random", _random),
)
"""Scores of heads and neurons, `estimation.base_score`."""

MODULE_SCORES: dict[str, Score[Module]] = _table(
    Score("activation", lambda module: module.means[SHARE], (SHARE,)),
    Score("taylor", lambda module: module.means["gradient"].abs(), ("gradient",)),
    Score("fisher", lambda module: module.means["square"], ("square",)),
)
"""Scores of PEFT modules, `estimation.module_score`."""

RANK_SCORES: dict[str, Score[Ranks]] = _table(
    Score("paper", _paper, ("gradient",)),
    Score("taylor", lambda ranks: ranks.means["gradient"].abs(), ("gradient",)),
    Score("fisher", lambda ranks: ranks.means["square"], ("square",)),
)
"""Scores of ranks, `estimation.rank_score`."""

LAYER_SCORES: dict[str, Score[Layer]] = _table(
    Score("sum", lambda layer: layer.units.sum()),
    # Block influence (ShortGPT, Men et al. 2024).
    Score("cosine", lambda layer: 1 - layer.means[SIMILARITY], (SIMILARITY,)),
)
"""Scores of layers, `estimation.layer_score`."""

TABLES: dict[str, Mapping[str, Score[Any]]] = {
    "base": BASE_SCORES,
    "module": MODULE_SCORES,
    "rank": RANK_SCORES,
    "layer": LAYER_SCORES,
}
"""By the keys of `Scores.methods`."""
