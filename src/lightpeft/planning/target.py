"""Plans for a target: the least score lost at a share of what plain PEFT costs."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightpeft.anatomy import DECODERS, Anatomy
from lightpeft.config import Budget, Cuts, exact_count
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
    if _are_of_loss(scores):
        return scores
    is_sum = scores.methods.get("layer", "sum") == "sum"
    return dataclasses.replace(
        scores,
        heads=_shares(scores.heads),
        neurons=_shares(scores.neurons),
        layers=() if is_sum else scores.layers,
    )


def _are_of_loss(scores: Scores) -> bool:
    """Whether heads' and neurons' say the same thing; as scores of one's own are taken to."""
    row = BASE_SCORES.get(scores.methods.get("base", ""))
    return row is None or row.of_loss


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
        for member, level in zip(knob.members, knob.levels[option], strict=True):
            if level is not None:
                kept[member.kind][member.layer] = member.blocks.best(level)
    modules = [anatomy.modules[number] for number in choice.skipped]
    skipped = frozenset(layer.index for layer in anatomy.layers if layer.module in modules)
    total = sum(float(values.double().sum()) for values in (*scores.heads, *scores.neurons))
    lost = choice.lost / total if total > 0 else 0.0
    return Found(kept["heads"], kept["neurons"], skipped, lost, choice.cost / prices.plain)


@dataclass(frozen=True)
class _Member:
    """Heads or neurons of one layer."""

    kind: str
    layer: int
    blocks: Blocks
    total: float
    """Score of all units."""

    def lost(self, level: int | None) -> float:
        """Score of the blocks beyond the best `level`; None keeps all units."""
        if level is None:
            return 0.0
        return self.total - sum(self.blocks.values[:level]) * self.blocks.block_size

    def saved(self, prices: Prices, level: int | None) -> float:
        """What they cost."""
        if level is None:
            return 0.0
        return prices.layers[self.layer].saved(self.kind, level * self.blocks.block_size)


@dataclass(frozen=True)
class _Knob:
    """Heads, neurons or both that go step by step: of one layer, or of several in equal shares."""

    members: tuple[_Member, ...]
    levels: tuple[tuple[int | None, ...], ...]
    """Per option how many blocks of each member stay; None where it is not cut."""

    def dial(self, prices: Prices, of_modules: Sequence[int]) -> Dial:
        """What each option loses and saves; `of_modules` has the number of each layer's module."""
        rows = [list(zip(self.members, levels, strict=True)) for levels in self.levels]
        lost = [[member.lost(level) for member, level in row] for row in rows]
        saved = [[member.saved(prices, level) for member, level in row] for row in rows]
        return Dial(
            tuple(of_modules[member.layer] for member in self.members),
            torch.tensor(lost, dtype=torch.float64),
            torch.tensor(saved, dtype=torch.float64),
        )


def _knobs(scores: Scores, anatomy: Anatomy, budget: Budget) -> list[_Knob]:
    """One for all layers, or for each, as units are ranked; for heads and neurons where they can be compared.

    Where their scores are of different scales, both go in equal shares.
    """
    pools: dict[tuple[int | None, str | None], list[_Member]] = {}
    comparable = _are_of_loss(scores)
    for kind, values, scope in (
        ("heads", scores.heads, budget.heads_scope),
        ("neurons", scores.neurons, budget.neurons_scope),
    ):
        for layer, one in zip(anatomy.layers, values, strict=True):
            units = layer.attention if kind == "heads" else layer.ffn
            blocks = blocks_of(layer.name, units, one.tolist(), budget)
            if blocks is not None and blocks.blocks:
                member = _Member(kind, layer.index, blocks, float(one.double().sum()))
                key = (layer.index if scope == "global" else None, kind if comparable else None)
                pools.setdefault(key, []).append(member)
    return [_Knob(tuple(pool), _levels(pool)) for pool in pools.values()]


def _levels(pool: Sequence[_Member]) -> tuple[tuple[int | None, ...], ...]:
    """All blocks of every member, then ever fewer, in equal shares, down to the floors."""
    parts = [member.blocks for member in pool]
    steps = max(len(one.blocks) for one in parts)
    rows: list[tuple[int | None, ...]] = [tuple(None for _ in pool)]
    for step in range(steps + 1):
        kept = [
            one.allowed(max(one.floor, len(one.blocks) - exact_count(step / steps, len(one.blocks))))
            for one in parts
        ]
        row = tuple(
            None if count * one.block_size == one.units else count
            for count, one in zip(kept, parts, strict=True)
        )
        rows += _between(pool, rows[-1], row)
    return tuple(rows)


def _between(
    pool: Sequence[_Member], before: tuple[int | None, ...], after: tuple[int | None, ...]
) -> list[tuple[int | None, ...]]:
    """From one row to the next, a kind of units at a time, as small models have few and large blocks."""
    rows, row = [], before
    for kind in ("neurons", "heads"):
        found = tuple(
            new if member.kind == kind else old for member, old, new in zip(pool, row, after, strict=True)
        )
        if found != row:
            rows.append(found)
        row = found
    return rows
