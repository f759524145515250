"""Scores that need no gradient: the baselines `magnitude` and `random`."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightpeft.anatomy import Anatomy, AttentionSite, FFNSite, linear_at


def baseline_scores(
    base: PreTrainedModel, anatomy: Anatomy, method: str, seed: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Scores of heads and neurons per layer, float32 on the CPU."""
    if method == "magnitude":
        return (
            tuple(_head_norms(base, layer.attention) for layer in anatomy.layers),
            tuple(_neuron_norms(base, layer.ffn) for layer in anatomy.layers),
        )
    generator = torch.Generator().manual_seed(seed)
    return (
        tuple(torch.rand(layer.attention.heads, generator=generator) for layer in anatomy.layers),
        tuple(torch.rand(layer.ffn.neurons, generator=generator) for layer in anatomy.layers),
    )


def _head_norms(base: PreTrainedModel, site: AttentionSite) -> Tensor:
    """L2 norm of all weights that belong to a head."""
    squares = _column_squares(base, site.out)
    for name in (site.query, site.key, site.value):
        squares = squares + _row_squares(base, name)
    return squares.view(site.heads, site.head_size).sum(1).sqrt()


def _neuron_norms(base: PreTrainedModel, site: FFNSite) -> Tensor:
    squares = _column_squares(base, site.out)
    for name in site.inputs:
        squares = squares + _row_squares(base, name)
    return squares.sqrt()


def _row_squares(base: PreTrainedModel, name: str) -> Tensor:
    return linear_at(base, name).weight.detach().float().square().sum(1).cpu()


def _column_squares(base: PreTrainedModel, name: str) -> Tensor:
    return linear_at(base, name).weight.detach().float().square().sum(0).cpu()
