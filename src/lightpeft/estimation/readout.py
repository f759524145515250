"""From sums over steps to scores: looks up the chosen rows and gives them what they ask for."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightpeft.adapters import PeftModule
from lightpeft.anatomy import Anatomy
from lightpeft.config import EstimationConfig
from lightpeft.errors import EstimationError
from lightpeft.estimation.norms import column_squares, weight_norms
from lightpeft.estimation.sites import Site
from lightpeft.score_tables import (
    BASE_SCORES,
    FLUCTUATION,
    LAYER_SCORES,
    MODULE_SCORES,
    RANK_SCORES,
    SHARE,
    SIMILARITY,
    Layer,
    Module,
    Ranks,
    Score,
    Units,
)
from lightpeft.scores import Scores

Base = dict[str, tuple[Tensor, ...]]
"""`heads` and `neurons`, per layer (units,)."""


class Readout:
    """The chosen scores of one model."""

    def __init__(
        self,
        base: PreTrainedModel,
        anatomy: Anatomy,
        modules: Sequence[PeftModule],
        sites: Sequence[Site],
        config: EstimationConfig,
    ) -> None:
        self._base, self._anatomy, self._modules, self._config = base, anatomy, modules, config
        self._sites = sites
        self.of_base: Score[Units] = BASE_SCORES[config.base_score]
        self.of_modules: Score[Module] = MODULE_SCORES[config.module_score]
        self.of_ranks: Score[Ranks] = RANK_SCORES[config.rank_score]
        self.of_layers: Score[Layer] = LAYER_SCORES[config.layer_score]

    @property
    def gradients(self) -> dict[str, tuple[str, ...]]:
        """Statistics of gates' gradients to gather, by kind of gate."""
        return {
            "base": self.of_base.gradients,
            "modules": self.of_modules.gradients,
            "ranks": self.of_ranks.gradients,
        }

    @property
    def needs_fluctuations(self) -> bool:
        """Whether squares of inputs and hidden states are to be gathered."""
        return FLUCTUATION in self.of_base.statistics

    @property
    def needs_shares(self) -> bool:
        """Whether shares of modules are to be gathered."""
        return SHARE in self.of_modules.statistics

    @property
    def needs_similarities(self) -> bool:
        """Whether similarities of hidden states are to be gathered."""
        return SIMILARITY in self.of_layers.statistics

    def scores(
        self,
        window: Mapping[str, Tensor],
        gates: Mapping[str, Tensor],
        steps: int,
        with_halves: bool,
    ) -> Scores:
        """Scores over all steps of the window and, with halves, over its even and its odd ones.

        Args:
            window: sums as `WindowSums.window` gives them.
            gates: per site of the base its gates' values, (units,).
            steps: all steps that were estimated.
        """
        whole = {name: sums.sum(0) for name, sums in window.items()}
        base = self._of_base(whole, gates)
        halves: tuple[Scores, ...] = ()
        if with_halves and bool((window["finite_steps"] > 0).all()):
            halves = tuple(
                self._half({name: sums[half] for name, sums in window.items()}, gates, base, steps)
                for half in (0, 1)
            )
        return self._put_together(whole, base, steps, halves)

    def _half(
        self, sums: Mapping[str, Tensor], gates: Mapping[str, Tensor], base: Base, steps: int
    ) -> Scores:
        if self.of_base.statistics:
            base = self._of_base(sums, gates)
        return self._put_together(sums, base, steps, ())

    def _put_together(
        self,
        sums: Mapping[str, Tensor],
        base: Base,
        steps: int,
        halves: tuple[Scores, ...],
    ) -> Scores:
        config = self._config
        return Scores(
            heads=base["heads"],
            neurons=base["neurons"],
            ranks=self._of_ranks(sums),
            modules=self._of_modules(sums),
            steps=steps,
            methods={
                "base": config.base_score,
                "module": config.module_score,
                "rank": config.rank_score,
                "layer": config.layer_score,
            },
            layers=self._of_layers(sums, base),
            scored_steps=int(sums["finite_steps"]),
            halves=halves,
        )

    def _of_base(self, sums: Mapping[str, Tensor], gates: Mapping[str, Tensor]) -> Base:
        generator = torch.Generator().manual_seed(self._config.seed)
        found: dict[str, list[Tensor]] = {}
        for kind in ("heads", "neurons"):
            found[kind] = [torch.zeros(0) for _ in self._anatomy.layers]
            for site in (one for one in self._sites if one.kind == kind):
                layer = self._anatomy.layers[site.owner]
                units = next(one for one in layer.units if one.out == site.module)
                means = _means(sums, "base", self.of_base, site.span)
                if self.needs_fluctuations:
                    means[FLUCTUATION] = self._fluctuations(sums, site, layer.module)
                known = Units(
                    means=means,
                    gates=gates[site.module],
                    norms=partial(weight_norms, self._base, units),
                    generator=generator,
                )
                found[kind][site.owner] = _apply(self.of_base, known, (site.units,), site.module)
        return {kind: tuple(values) for kind, values in found.items()}

    def _fluctuations(self, sums: Mapping[str, Tensor], site: Site, layer: str) -> Tensor:
        """Channels are taken as independent: Σ_c Var(x_c)·‖W_c‖², over E‖h‖²; (units,).

        Sums of inputs begin with the sites of the base, in their order.
        """
        place, at = self._sites.index(site), self._anatomy.modules.index(layer)
        start = sum(one.channels for one in self._sites[:place])
        count = sums["input_count"][place].clamp(1)
        mean, square = (sums[n][start : start + site.channels] / count for n in ("input_sum", "input_square"))
        energy = (square - mean.square()).clamp(0) * column_squares(self._base, site.module)
        hidden = sums["hidden_square"][at] / sums["hidden_count"][at].clamp(1)
        return energy.view(site.units, -1).sum(1) / hidden.clamp(torch.finfo(hidden.dtype).tiny)

    def _of_ranks(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found, start = {}, 0
        for module in self._modules:
            span = slice(start, start + module.rank)
            known = Ranks(_means(sums, "ranks", self.of_ranks, span), module.widths)
            found[module.name] = _apply(self.of_ranks, known, (module.rank,), module.name)
            start = span.stop
        return found

    def _of_modules(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = {}
        for position, module in enumerate(self._modules):
            means = _means(sums, "modules", self.of_modules, position)
            if self.needs_shares:
                means[SHARE] = sums["share_sum"][position] / sums["share_count"][position].clamp(1)
            found[module.name] = float(_apply(self.of_modules, Module(means), (), module.name))
        return found

    def _of_layers(self, sums: Mapping[str, Tensor], base: Base) -> tuple[float, ...]:
        """A layer with its cross-attention has one score, at the entry of the layer."""
        found = [0.0] * len(self._anatomy.layers)
        for position, module in enumerate(self._anatomy.modules):
            parts = [layer.index for layer in self._anatomy.parts_of(module)]
            units = torch.cat([base[kind][part] for part in parts for kind in ("heads", "neurons")])
            means = {}
            if self.needs_similarities:
                means[SIMILARITY] = sums["similarity_sum"][position] / sums["similarity_count"][
                    position
                ].clamp(1)
            found[parts[0]] = float(_apply(self.of_layers, Layer(means, units), (), module))
        return tuple(found)


def _means(
    sums: Mapping[str, Tensor], kind: str, score: Score[Units] | Score[Module] | Score[Ranks], at: slice | int
) -> dict[str, Tensor]:
    return {name: sums[f"{kind}.{name}"][at] / sums["finite_steps"][0] for name in score.gradients}


def _apply(score: Score[Any], known: Any, shape: tuple[int, ...], place: str) -> Tensor:
    values = score.function(known)
    if values.shape != shape:
        raise EstimationError(
            f"score {score.name!r} gave values of shape {tuple(values.shape)} for {place}, expected {shape}."
        )
    return values
