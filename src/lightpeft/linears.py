"""`nn.Linear` and GPT-2's `Conv1D` (the same, weight transposed) seen alike, and quantised linears."""

from typing import TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Projection = nn.Linear | Conv1D
OUTPUTS, INPUTS = 0, 1


_LINEAR_STATE = frozenset(vars(nn.Linear(1, 1)))
_UNITS = 1024
"""Unit vectors in a batch that a quantised linear is asked with."""


def is_plain_linear(module: nn.Module) -> TypeGuard[Projection]:
    """Whether `module` is one of the two, or a subclass that holds nothing else: not a quantised one.

    Its weight may be in parts on several processes (a DTensor).
    """
    if type(module) is not Conv1D and not (isinstance(module, nn.Linear) and not _own_state(module)):
        return False
    weight = module.weight
    is_plain = type(weight.data) is Tensor or hasattr(weight.data, "full_tensor")
    return is_plain and weight.dtype.is_floating_point and weight.dim() == 2


def is_quantised(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether `module` is an `nn.Linear` whose weight a library keeps in a form of its own, of few bits."""
    return isinstance(module, nn.Linear) and is_packed(module.weight)


def is_packed(tensor: Tensor) -> bool:
    """Whether a parameter's values are not its entries: integers, or a library's own kind of tensor."""
    is_own_kind = type(tensor.data) is not Tensor and not hasattr(tensor.data, "full_tensor")
    return is_own_kind or not tensor.dtype.is_floating_point


def _own_state(linear: nn.Linear) -> set[str]:
    """What a subclass keeps beside weight and bias; names with an underscore are marks of libraries."""
    tensors = {*linear._parameters, *linear._buffers} - {"weight", "bias"}
    return tensors | {name for name in vars(linear) if name not in _LINEAR_STATE and name[0] != "_"}


def weight_dim(linear: nn.Module, side: int) -> int:
    """The dimension of `linear.weight` that runs over OUTPUTS or INPUTS."""
    return 1 - side if isinstance(linear, Conv1D) else side


def width(linear: Projection, side: int) -> int:
    """Output or input channels."""
    if is_quantised(linear):
        return int(getattr(linear, width_attribute(linear, side)))
    return linear.weight.shape[weight_dim(linear, side)]


def width_attribute(linear: nn.Module, side: int) -> str:
    """The attribute that holds `width`."""
    names = ("nf", "nx") if isinstance(linear, Conv1D) else ("out_features", "in_features")
    return names[side]


def matrix(linear: Projection) -> Tensor:
    """The weight as (outputs, inputs), a view; of a quantised linear what it does to unit vectors."""
    if is_quantised(linear):
        return _dequantised(linear)
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def as_stored(linear: Projection, weight: Tensor) -> Tensor:
    """A weight (outputs, inputs) the way `linear` stores it."""
    return weight.T.contiguous() if isinstance(linear, Conv1D) else weight


@torch.no_grad()
def _dequantised(linear: nn.Linear) -> Tensor:
    """Every library keeps its weights otherwise, and all of them multiply."""
    weight, columns = linear.weight, []
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    for units in torch.eye(linear.in_features, dtype=dtype, device=weight.device).split(_UNITS):
        # With gradients, as bitsandbytes takes other ways without.
        found = type(linear).forward(linear, units.requires_grad_())
        columns.append((found if linear.bias is None else found - linear.bias).float())
    return torch.cat(columns).T
