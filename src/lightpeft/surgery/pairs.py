"""Frozen low-rank pairs of PEFT modules and ranks that are gone: beside a linear, or folded into it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightpeft.anatomy import linear_at
from lightpeft.edits import Journal
from lightpeft.linears import Projection, as_stored, is_plain_linear, matrix

Pair = tuple[Tensor, Tensor]
"""(d_out, k) and (k, d_in): `left @ right` = ΔW."""

LARGEST_LOSS = 0.01
"""Share of ΔW that rounding may lose, ‖round(W + ΔW) - W - ΔW‖ / ‖ΔW‖; above it the pair stays beside."""


class PairBeside:
    """A forward hook that adds left @ right @ x to what a linear puts out, as if W were W + left @ right."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = _wide(left), _wide(right)

    def __call__(self, linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if self.left.device != x.device:
            self.left, self.right = self.left.to(x.device), self.right.to(x.device)
        added = nn.functional.linear(nn.functional.linear(x.to(self.left.dtype), self.right), self.left)
        return output + added.to(output.dtype)


def together(first: Pair | None, second: Pair) -> Pair:
    """One pair that does what both do."""
    if first is None:
        return second
    (left, right), (more_left, more_right) = ([_wide(one) for one in pair] for pair in (first, second))
    return torch.cat([left, more_left.to(left)], 1), torch.cat([right, more_right.to(right)])


def add_pairs(base: PreTrainedModel, pairs: Mapping[str, Pair], journal: Journal) -> None:
    """Put pairs beside linears, in float32 at least; no weight changes. What is beside one already stays."""
    for name, (left, right) in pairs.items():
        linear = linear_at(base, name)
        there = next((hook for hook in linear._forward_hooks.values() if isinstance(hook, PairBeside)), None)
        pair = left.to(linear.weight.device), right.to(linear.weight.device)
        if there is not None:
            there.left, there.right = together((there.left, there.right), pair)
        else:
            journal.add_hook(linear.register_forward_hook(PairBeside(*pair)))


def fold_pairs(base: PreTrainedModel, pairs: Mapping[str, Pair], journal: Journal) -> None:
    """Add pairs to the weights of linears: W += left @ right."""
    for name, pair in pairs.items():
        linear = linear_at(base, name)
        journal.assign(linear.weight, as_stored(linear, _folded(linear, pair)))


def fold_beside(base: PreTrainedModel, names: Iterable[str] | None = None) -> None:
    """Fold pairs that are beside linears into their weights, for good.

    No copy of the old weights is kept: a pair beside and a pair folded compute the same, so that a failure in
    between leaves a model that computes the same too.

    Args:
        names: of linears; by default of all that have a pair beside.
    """
    linears = base.modules() if names is None else (linear_at(base, name) for name in names)
    for linear in linears:
        for key, hook in list(linear._forward_hooks.items()):
            if isinstance(hook, PairBeside) and is_plain_linear(linear):
                linear.weight.data = as_stored(linear, _folded(linear, (hook.left, hook.right)))
                del linear._forward_hooks[key]


def lost_by_folding(linear: Projection, pair: Pair) -> float:
    """The share of ΔW that the dtype of W would lose. Of float32 and wider it is not measured, but 0."""
    weight = matrix(linear).detach()
    if torch.finfo(weight.dtype).bits > 16:
        return 0.0
    delta = _delta(pair, weight)
    missing = _folded(linear, pair).to(delta.dtype) - (weight.to(delta.dtype) + delta)
    size = float(torch.linalg.vector_norm(delta))
    return float(torch.linalg.vector_norm(missing)) / size if size else 0.0


def _folded(linear: Projection, pair: Pair) -> Tensor:
    weight = matrix(linear).data
    return _delta(pair, weight).add_(weight).to(weight.dtype)


def _delta(pair: Pair, weight: Tensor) -> Tensor:
    left, right = pair
    wide = torch.promote_types(weight.dtype, torch.float32)
    return left.to(weight.device, wide) @ right.to(weight.device, wide)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
