"""Layer maps and pairs of gradients without a model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightpeft.audit.policies.gradients import TaskPair
from lightpeft.audit.policies.layers import LayerGroup, LayerMap


def layer_map(depth: int, size: int = 2, single: str | None = None) -> LayerMap:
    """N layers and the output layer, one vector each."""
    groups = [
        LayerGroup(number, f"layer {number}", {f"p{number}": nn.Parameter(torch.zeros(size))})
        for number in range(depth + 1)
    ]
    return LayerMap(depth, tuple(groups), single)


def pair(
    clean: Sequence[Tensor], poisoned: Sequence[Tensor], losses: tuple[float, float] = (1.0, 1.0)
) -> TaskPair:
    """A pair of gradients, with norms and inner products."""
    return TaskPair(
        torch.tensor(losses[0]),
        torch.tensor(losses[1]),
        list(clean),
        list(poisoned),
        [float(g.norm()) for g in clean],
        [float(g.norm()) for g in poisoned],
        [float(a @ b) for a, b in zip(clean, poisoned, strict=True)],
    )
