"""Plans for a target: the least score lost at a share of what plain PEFT costs."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightpeft.anatomy import DECODERS, Anatomy
from lightpeft.config import Budget, Cuts, Scope, exact_count
from lightpeft.planning.blocks import Blocks, blocks_of
from lightpeft.planning.prices import Prices
from lightpeft.planning.skips import layer_losses
from lightpeft.planning.solver import Choice, Dial, Problem, cheapest, solve, solve_depth
from lightpeft.score_tables import BASE_SCORES
from lightpeft.scores import Scores

Kept = list[tuple[int, ...]]

AUTO_CUTS: dict[bool, Cuts] = {False: "width", True: "mixed"}
"""What `target.cuts="auto"` means, by whether the model is a decoder."""


@dataclass(frozen=True)
class Found:
    """What stays, and what it costs."""

    heads: Kept
    neurons: Kept
    skipped: frozenset[int]
    """Indices of the layers that are skipped; what is kept of their units does not count."""

    lost: float
    """Share of the score of all heads and neurons."""

    cost: float
    """Share of plain PEFT's."""


def cuts_for(anatomy: Anatomy, cuts: Cuts) -> Cuts:
    """What `auto` means for this kind of model."""
    return AUTO_CUTS[anatomy.model_type in DECODERS] if cuts == "auto" else cuts


def choose_for_target(
    scores: Scores, anatomy: Anatomy, budget: Budget, prices: Prices, share: float, cuts: Cuts
) -> Found | float:
    """The least score lost at `share` of plain PEFT's cost, or, if no cut goes so far, the least share."""
    cuts, scores = cuts_for(anatomy, cuts), on_one_scale(scores)
    knobs = [] if cuts == "depth" else _knobs(scores, anatomy, budget)
    place = {module: number for number, module in enumerate(anatomy.modules)}
    of_modules = [place[layer.module] for layer in anatomy.layers]
    whole = [0.0] * len(place)
    for number, price in zip(of_modules, prices.layers, strict=True):
        whole[number] += price.whole
    losses = {} if cuts == "width" else layer_losses(scores, anatomy)
    problem = Problem(
        whole=tuple(whole),
        skips=tuple(losses.get(module) if module in anatomy.skippable else None for module in place),
        stacks=tuple(frozenset(place[module] for module in stack) for stack in anatomy.stacks),
        dials=tuple(knob.dial(prices, of_modules) for knob in knobs),
        constant=prices.constant,
        limit=share * prices.plain,
    )
    choice = solve_depth(problem) if cuts == "depth" else solve(problem)
    if choice is None:
        return cheapest(problem).cost / prices.plain
    return _found(scores, anatomy, knobs, choice, prices)


def on_one_scale(scores: Scores) -> Scores:
    """Scores of which heads' and neurons' can be added up.

    Those of the loss are left as they are; others become shares of the sums of their kinds.
    """
    row = BASE_SCORES.get(scores.methods.get("base", ""))
    if row is None or row.of_loss:
        return scores
    is_sum = scores.methods.get("layer", "sum") == "sum"
    return dataclasses.replace(
        scores,
        heads=_shares(scores.heads),
        neurons=_shares(scores.neurons),
        layers=() if is_sum else scores.layers,
    )


def _shares(kind: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Scores of one kind of units over their sum."""
    total = math.fsum(float(values.double().sum()) for values in kind)
    return tuple(values / total for values in kind) if total > 0 else kind


def _found(
    scores: Scores, anatomy: Anatomy, knobs: Sequence["_Knob"], choice: Choice, prices: Prices
) -> Found:
    kept: dict[str, Kept] = {
        "heads": [tuple(range(layer.heads)) for layer in anatomy.layers],
        "neurons": [tuple(range(layer.neurons)) for layer in anatomy.layers],
    }
    for knob, option in zip(knobs, choice.options, strict=True):
        for layer, blocks, level in zip(knob.layers, knob.blocks, knob.levels[option], strict=True):
            if level is not None:
                kept[knob.kind][layer] = blocks.best(level)
    modules = [anatomy.modules[number] for number in choice.skipped]
    skipped = frozenset(layer.index for layer in anatomy.layers if layer.module in modules)
    total = sum(float(values.double().sum()) for values in (*scores.heads, *scores.neurons))
    lost = choice.lost / total if total > 0 else 0.0
    return Found(kept["heads"], kept["neurons"], skipped, lost, choice.cost / prices.plain)


@dataclass(frozen=True)
class _Knob:
    """Heads or neurons that go step by step: of one layer, or of several in equal shares."""

    kind: str
    layers: tuple[int, ...]
    blocks: tuple[Blocks, ...]
    totals: tuple[float, ...]
    """Score of all units, per layer."""

    levels: tuple[tuple[int | None, ...], ...]
    """Per option how many blocks stay in each layer; None where it is not cut."""

    def dial(self, prices: Prices, of_modules: Sequence[int]) -> Dial:
        """What each option loses and saves; `of_modules` has the number of each layer's module."""
        lost = [[self._lost(place, level) for place, level in enumerate(row)] for row in self.levels]
        saved = [
            [self._saved(prices, place, level) for place, level in enumerate(row)] for row in self.levels
        ]
        return Dial(
            tuple(of_modules[layer] for layer in self.layers),
            torch.tensor(lost, dtype=torch.float64),
            torch.tensor(saved, dtype=torch.float64),
        )

    def _lost(self, place: int, level: int | None) -> float:
        blocks = self.blocks[place]
        return 0.0 if level is None else self.totals[place] - sum(blocks.values[:level]) * blocks.block_size

    def _saved(self, prices: Prices, place: int, level: int | None) -> float:
        if level is None:
            return 0.0
        return prices.layers[self.layers[place]].saved(self.kind, level * self.blocks[place].block_size)


def _knobs(scores: Scores, anatomy: Anatomy, budget: Budget) -> list[_Knob]:
    knobs: list[_Knob] = []
    for kind, values, scope in (
        ("heads", scores.heads, budget.heads_scope),
        ("neurons", scores.neurons, budget.neurons_scope),
    ):
        found = [
            blocks_of(layer.name, layer.attention if kind == "heads" else layer.ffn, one.tolist(), budget)
            for layer, one in zip(anatomy.layers, values, strict=True)
        ]
        cuttable = {index: blocks for index, blocks in enumerate(found) if blocks and blocks.blocks}
        for pool in _pools(list(cuttable), scope):
            blocks = tuple(cuttable[index] for index in pool)
            totals = tuple(float(values[index].double().sum()) for index in pool)
            knobs.append(_Knob(kind, tuple(pool), blocks, totals, _levels(blocks)))
    return knobs


def _pools(layers: list[int], scope: Scope) -> list[list[int]]:
    """Layers that lose equal shares: all of them where units are ranked inside each layer."""
    return [[layer] for layer in layers] if scope == "global" else [layers] if layers else []


def _levels(pool: tuple[Blocks, ...]) -> tuple[tuple[int | None, ...], ...]:
    """All of them, then ever fewer blocks, in equal shares, down to the floors."""
    steps = max(len(one.blocks) for one in pool)
    rows: list[tuple[int | None, ...]] = [tuple(None for _ in pool)]
    for step in range(steps + 1):
        kept = [
            one.allowed(max(one.floor, len(one.blocks) - exact_count(step / steps, len(one.blocks))))
            for one in pool
        ]
        row = tuple(
            None if count * one.block_size == one.units else count
            for count, one in zip(kept, pool, strict=True)
        )
        if row != rows[-1]:
            rows.append(row)
    return tuple(rows)
