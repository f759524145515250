"""Gates: scalars on units, as forward-pre-hooks on the linears whose inputs the units are.

A gate m multiplies its unit's channels. At m = 1 its gradient is Σ_tokens x · ∂L/∂x, so `Probe` computes
that gradient without multiplying anything. For the ranks of a LoRA pair it equals
Σ_j A_rj ∂L/∂A_rj = Σ_i B_ir ∂L/∂B_ir, the first-order Taylor term of the rank.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Gate(Protocol):
    """What stands in front of a linear: its input (..., channels) goes through it."""

    values: Tensor
    """(units,), its `.grad` accumulates the gates' gradient."""

    def attach(self, linear: nn.Module) -> list[RemovableHandle]:
        """Put the hooks in."""
        ...


class _Handover:
    """Brings a tensor from the backward pass of one place to that of an earlier one."""

    def __init__(self) -> None:
        self.held: Tensor | None = None

    def take(self) -> Tensor:
        """What was given, once."""
        held, self.held = self.held, None
        assert held is not None, "the later place has its backward pass first"
        return held


class _PassAndHandOver(torch.autograd.Function):
    """Identity whose backward hands its input over."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, handover: _Handover) -> Tensor:
        ctx.save_for_backward(x)
        ctx.handover = handover
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (ctx.handover.held,) = ctx.saved_tensors
        return grads[0], None


class _PassAndMeasure(torch.autograd.Function):
    """Identity whose backward also gives the gradient of gates that are all 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, handover: _Handover | None) -> Tensor:
        if handover is None:
            ctx.save_for_backward(x)
        ctx.units, ctx.handover = gate.numel(), handover
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad = grads[0]
        x = ctx.saved_tensors[0] if ctx.handover is None else ctx.handover.take()
        products = grad.flatten(0, -2).float() * x.flatten(0, -2).float()
        return grad, products.sum(0).view(ctx.units, -1).sum(1), None


class Probe:
    """Gates that stay at 1 and only measure their gradient.

    A frozen linear does not keep its input for the backward pass, so that keeping it for the gates would cost
    memory. Where a PEFT module reads that input, its copy, which is behind its dropout, stands in for it.

    Args:
        reader: that module, as long as it is in use.
    """

    def __init__(
        self, units: int, device: torch.device, reader: Callable[[], nn.Module | None] = lambda: None
    ) -> None:
        self.values = torch.ones(units, device=device, requires_grad=True)
        self._reader = reader
        self._handover: _Handover | None = None

    def attach(self, linear: nn.Module) -> list[RemovableHandle]:
        """Put the hooks in."""
        handles = [linear.register_forward_pre_hook(self)]
        reader = self._reader()
        if reader is not None:
            handles.append(reader.register_forward_pre_hook(self._hand_over))
        return handles

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        self._handover = None
        if not (module.training and torch.is_grad_enabled()):
            return None
        if self._reader() is not None:
            self._handover = _Handover()
        measured: Tensor = _PassAndMeasure.apply(inputs[0], self.values, self._handover)  # type: ignore[no-untyped-call]
        return measured, *inputs[1:]

    def _hand_over(self, reader: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._handover is None:
            return None
        passed: Tensor = _PassAndHandOver.apply(inputs[0], self._handover)  # type: ignore[no-untyped-call]
        return passed, *inputs[1:]


class Mask:
    """Gates that multiply their units: trained ones (the paper's mask) or fixed ones."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def attach(self, linear: nn.Module) -> list[RemovableHandle]:
        """Put the hook in."""
        return [linear.register_forward_pre_hook(self)]

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
            for handle in Mask(values).attach(module):
                stack.callback(handle.remove)
        yield
