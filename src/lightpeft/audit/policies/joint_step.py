"""The joint step: both tasks' gradients, combined by a policy, as one optimizer step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from lightpeft.audit.errors import AuditError
from lightpeft.audit.policies.gradients import Batch, TaskPair, check_finite, pair_of, set_gradients
from lightpeft.audit.policies.layers import LayerMap
from lightpeft.audit.policies.policy import Policy


@dataclass(frozen=True)
class StepRecord:
    """What one joint step saw. Lists have one number per group of the layer map."""

    clean_loss: float
    poisoned_loss: float
    clean_norms: list[float]
    """‖g_c‖₂."""
    poisoned_norms: list[float]
    """‖g_p‖₂, before the policy."""
    cosines: list[float | None]
    """Between g_c and g_p; None where one of them is 0."""
    readings: dict[str, list[float]]
    """What the policy keeps, such as `w` per layer; as it was used in this step."""


def step(
    model: nn.Module,
    clean_batch: Batch,
    poisoned_batch: Batch,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    *,
    max_norm: float | None = None,
) -> StepRecord:
    """One optimizer step on both tasks; the combined gradient stays in `.grad`.

    The model stays in the mode it is in. There are two forward and two backward passes (more where the policy
    says so), and norms are read from the device twice.

    Args:
        clean_batch, poisoned_batch: inputs of the model on its device, with `labels`.
        policy: made for the layer map of this very model.
        optimizer: any that reads `.grad`, over exactly the trained parameters.
        max_norm: clip the L2 norm of the combined gradient.

    Raises:
        AuditError: a gradient is not finite (nothing has changed then), or model, policy and optimizer do
            not have the same parameters.
    """
    layers = policy.layers
    _check_parameters(model, layers, optimizer)
    clean_loss, poisoned_loss = policy.losses(model, clean_batch, poisoned_batch)
    pair = pair_of(clean_loss, poisoned_loss, layers, create_graph=policy.second_order)
    combined = policy.combine(pair)
    used = policy.readings()
    norms = torch.stack([torch.linalg.vector_norm(g.detach()) for g in combined]).tolist()
    check_finite(norms, layers, "combined")
    policy.update(pair)
    set_gradients(layers, combined)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(layers.parameters, max_norm)
    optimizer.step()
    return StepRecord(
        float(clean_loss.detach()),
        float(poisoned_loss.detach()),
        pair.clean_norms,
        pair.poisoned_norms,
        list(_cosines(pair)),
        used,
    )


def _cosines(pair: TaskPair) -> Iterator[float | None]:
    for inner, c, p in zip(pair.inner, pair.clean_norms, pair.poisoned_norms, strict=True):
        yield max(-1.0, min(1.0, inner / (c * p))) if c * p > 0 else None


def _check_parameters(model: nn.Module, layers: LayerMap, optimizer: torch.optim.Optimizer) -> None:
    mapped = {id(p) for p in layers.parameters}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if not mapped == trained == stepped:
        raise AuditError(
            f"found {len(trained)} trained parameters in the model, {len(mapped)} in the policy's layer map "
            f"({len(mapped & trained)} of them the same) and {len(stepped)} in the optimizer "
            f"({len(stepped & trained)} the same); map the layers, and make policy and optimizer, of this "
            "model as it is now."
        )
