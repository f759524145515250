"""Gradients of the two tasks, layer by layer, as flat vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightpeft.audit.errors import AuditError
from lightpeft.audit.policies.layers import LayerMap

Task = Literal["clean", "poisoned", "combined"]
Batch = Mapping[str, Any]
"""What the model takes, `labels` with it."""


@dataclass(frozen=True)
class TaskPair:
    """Losses and gradients of the clean and the poisoned task at the same weights.

    A gradient is one flat vector per group of the layer map, in its order; so are the norms.
    """

    clean_loss: Tensor
    poisoned_loss: Tensor
    clean: list[Tensor]
    poisoned: list[Tensor]
    clean_norms: list[float]
    poisoned_norms: list[float]
    inner: list[float]
    """g_c · g_p per layer."""


def task_gradients(loss: Tensor, layers: LayerMap, task: Task, *, create_graph: bool = False) -> list[Tensor]:
    """The gradient of a loss, one flat vector (numbers of the layer,) per group; no `.grad` is touched.

    A parameter that the loss does not depend on has gradient 0. Reentrant gradient checkpointing does not
    allow this way of differentiating.

    Raises:
        AuditError: no parameter of the map has a part in the loss.
    """
    found: tuple[Tensor | None, ...] = ()
    if loss.requires_grad:
        found = torch.autograd.grad(loss, layers.parameters, create_graph=create_graph, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise AuditError(f"no trained parameter has a part in the {task} loss; map the layers anew.")
    filled = iter(
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(layers.parameters, found, strict=True)
    )
    return [torch.cat([next(filled).flatten() for _ in group.parameters]) for group in layers.groups]


def pair_of(
    clean_loss: Tensor, poisoned_loss: Tensor, layers: LayerMap, *, create_graph: bool = False
) -> TaskPair:
    """Both gradients, and their norms and inner products, which are read from the device at once.

    Args:
        clean_loss, poisoned_loss: of two forward passes.

    Raises:
        AuditError: see `task_gradients`; or a gradient is NaN or infinite; names task and layer.
    """
    clean = task_gradients(clean_loss, layers, "clean", create_graph=create_graph)
    poisoned = task_gradients(poisoned_loss, layers, "poisoned", create_graph=create_graph)
    with torch.no_grad():
        rows = [
            [torch.linalg.vector_norm(g) for g in clean],
            [torch.linalg.vector_norm(g) for g in poisoned],
            [g_c @ g_p for g_c, g_p in zip(clean, poisoned, strict=True)],
        ]
        clean_norms, poisoned_norms, inner = torch.stack([torch.stack(row) for row in rows]).tolist()
    check_finite(clean_norms, layers, "clean")
    check_finite(poisoned_norms, layers, "poisoned")
    return TaskPair(clean_loss, poisoned_loss, clean, poisoned, clean_norms, poisoned_norms, inner)


def check_finite(norms: Sequence[float], layers: LayerMap, task: Task) -> None:
    """Refuse gradients that are NaN or infinite.

    Args:
        norms: one per group.

    Raises:
        AuditError: names the task and the lowest such layer.
    """
    for group, norm in zip(layers.groups, norms, strict=True):
        if not norm < float("inf"):
            raise AuditError(
                f"the {task} gradient of {group.title} is not finite (norm {norm}): training diverged. Lower "
                "the learning rate, or look at the options of the gradient policy."
            )


def set_gradients(layers: LayerMap, gradients: Sequence[Tensor]) -> None:
    """Put flat vectors, one per group, into `.grad` of the group's parameters, in place of what is there."""
    for group, gradient in zip(layers.groups, gradients, strict=True):
        parameters = list(group.parameters.values())
        parts = gradient.detach().split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
