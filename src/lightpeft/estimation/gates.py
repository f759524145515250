"""Gates: scalars on units, as forward-pre-hooks on the linears whose inputs the units are.

A gate m multiplies its unit's channels. At m = 1 its gradient is Σ_tokens x · ∂L/∂x, so `Probe` computes
that gradient without multiplying anything. For the ranks of a LoRA pair it equals
Σ_j A_rj ∂L/∂A_rj = Σ_i B_ir ∂L/∂B_ir, the first-order Taylor term of the rank.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Gate(Protocol):
    """What stands in front of a linear: its input (..., channels) goes through it."""

    values: Tensor
    """(units,), its `.grad` accumulates the gates' gradient."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None: ...


class _PassAndMeasure(torch.autograd.Function):
    """Identity whose backward also gives the gradient of gates that are all 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.units = gate.numel()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (x,), grad = ctx.saved_tensors, grads[0]
        products = grad.flatten(0, -2).float() * x.flatten(0, -2).float()
        return grad, products.sum(0).view(ctx.units, -1).sum(1)


class Probe:
    """Gates that stay at 1 and only measure their gradient."""

    def __init__(self, units: int, device: torch.device) -> None:
        self.values = torch.ones(units, device=device, requires_grad=True)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not (module.training and torch.is_grad_enabled()):
            return None
        measured: Tensor = _PassAndMeasure.apply(inputs[0], self.values)  # type: ignore[no-untyped-call]
        return measured, *inputs[1:]


class Mask:
    """Gates that multiply their units: trained ones (the paper's mask) or fixed ones."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        per_channel = spread(self.values, x.shape[-1]).to(x.dtype)
        return x * per_channel, *inputs[1:]


def spread(values: Tensor, channels: int) -> Tensor:
    """One value per unit (units,) as one value per channel (channels,)."""
    return values.repeat_interleave(channels // values.numel())


@contextmanager
def fixed_gates(base: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply the input of each named module of `base` by fixed gates, for the time of the context."""
    with ExitStack() as stack:
        for name, values in gates.items():
            module = base.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(Mask(values)).remove)
        yield
