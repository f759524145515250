"""Scores that need no gradient: the baselines `magnitude` and `random`."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightpeft.anatomy import Anatomy, Units, linear_at
from lightpeft.linears import matrix


def baseline_scores(
    base: PreTrainedModel, anatomy: Anatomy, method: str, seed: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Scores of heads and neurons per layer, float32 on the CPU."""
    if method == "magnitude":
        return (
            tuple(_norms(base, layer.attention) for layer in anatomy.layers),
            tuple(_norms(base, layer.ffn) for layer in anatomy.layers),
        )
    generator = torch.Generator().manual_seed(seed)
    return (
        tuple(torch.rand(layer.heads, generator=generator) for layer in anatomy.layers),
        tuple(torch.rand(layer.neurons, generator=generator) for layer in anatomy.layers),
    )


def _norms(base: PreTrainedModel, units: Units | None) -> Tensor:
    """L2 norm of all weights that belong to a unit; what units share counts for each of them."""
    if units is None:
        return torch.zeros(0)
    squares = _squares(base, units.out, 0).view(units.count, units.size).sum(1)
    for rows in units.rows:
        if rows.role != "vector":
            owners = units.count // rows.share
            own = _squares(base, rows.name, 1)[rows.start : rows.start + owners * rows.size]
            squares = squares + own.view(owners, rows.size).sum(1).repeat_interleave(rows.share)
    return squares.sqrt()


def _squares(base: PreTrainedModel, name: str, over: int) -> Tensor:
    """Sums of the squared weights of a linear over its outputs (0) or inputs (1), float32 on the CPU."""
    return matrix(linear_at(base, name)).detach().float().square().sum(over).cpu()
