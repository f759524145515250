"""In-place changes to modules that can be taken back until they are confirmed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightpeft.linears import OUTPUTS, Projection, weight_dim, width_attribute


class Journal:
    """Applies changes and remembers how to undo them, and what each change did to parameters.

    What it has to remember for that stays alive until the journal itself is dropped.
    """

    def __init__(self) -> None:
        self.slices: dict[Tensor, list[tuple[int, Tensor]]] = {}
        """Per parameter, the (dimension, kept indices) it was sliced by, in order."""
        self.shapes: dict[Tensor, torch.Size] = {}
        """Of these parameters, the shape before."""
        self.dropped: list[Tensor] = []
        """Parameters that are no longer part of the model."""
        self._undo: list[Callable[[], None]] = []

    def assign(self, parameter: Tensor, value: Tensor) -> None:
        """Give `parameter` new data, keeping the Parameter object; its gradient is dropped."""
        old, old_grad = parameter.data, parameter.grad

        def restore() -> None:
            _give(parameter, old)
            parameter.grad = old_grad

        self._undo.append(restore)
        parameter.grad = None
        _give(parameter, value)

    def slice(self, parameter: Tensor, dim: int, kept: Tensor) -> None:
        """Keep the indices `kept` (int64, ascending) of dimension `dim` of `parameter`.

        Of what was, only what goes is remembered, so that a cut needs no second copy of the weights.
        """
        shape, grad = parameter.shape, parameter.grad
        index = kept.to(parameter.device)
        gone = torch.ones(shape[dim], dtype=torch.bool, device=parameter.device).index_fill(0, index, False)
        lost = parameter.data[(slice(None),) * dim + (gone,)]

        def restore() -> None:
            whole = lost.new_empty(shape)
            whole.index_copy_(dim, index, parameter.data)
            whole.index_copy_(dim, gone.nonzero().flatten(), lost)
            _give(parameter, whole)
            parameter.grad = grad

        self._undo.append(restore)
        self.shapes.setdefault(parameter, shape)
        parameter.grad = None
        _give(parameter, parameter.data.index_select(dim, index).contiguous())
        self.slices.setdefault(parameter, []).append((dim, kept))

    def slice_linear(self, linear: Projection, side: int, kept: Tensor) -> None:
        """Keep some OUTPUTS (bias included) or INPUTS of a linear."""
        self.slice(linear.weight, weight_dim(linear, side), kept)
        if side == OUTPUTS and linear.bias is not None:
            self.slice(linear.bias, 0, kept)
        self.set_attribute(linear, width_attribute(linear, side), len(kept))

    def add_hook(self, handle: RemovableHandle) -> None:
        """Note that a hook was put on a module."""
        self._undo.append(handle.remove)

    def note_undo(self, undo: Callable[[], Any]) -> None:
        """Note how to take back a change that was made elsewhere."""
        self._undo.append(undo)

    def set_attribute(self, owner: object, name: str, value: Any) -> None:
        """Set `owner.name`."""
        old = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, old))
        setattr(owner, name, value)

    def set_own(self, owner: object, name: str, value: Any) -> None:
        """Set `owner.name` over what its class has; undoing this leaves the class's."""
        before = vars(owner).get(name)
        self._undo.append(lambda: delattr(owner, name) if before is None else setattr(owner, name, before))
        setattr(owner, name, value)

    def set_item(self, owner: dict[Any, Any], key: Any, value: Any) -> None:
        """Set `owner[key]`."""
        old = owner[key]
        self._undo.append(lambda: owner.__setitem__(key, old))
        owner[key] = value

    def delete_item(self, owner: Any, key: Any) -> None:
        """Delete `owner[key]`, if it is there; of a dictionary or a module's."""
        if key in owner:
            old = dict(owner.items())

            def restore() -> None:
                owner.clear()
                owner.update(old)

            self._undo.append(restore)
            del owner[key]

    def add_parameter(self, module: nn.Module, name: str, value: Tensor) -> None:
        """Give `module` a frozen parameter where it had None (a bias, say)."""
        self.set_attribute(module, name, nn.Parameter(value, requires_grad=False))

    def replace_module(self, root: nn.Module, name: str, module: nn.Module) -> None:
        """Put `module` in place of `root.name`, a dotted path."""
        parent_name, _, child = name.rpartition(".")
        self.set_attribute(root.get_submodule(parent_name), child, module)

    def drop(self, parameters: Iterable[Tensor]) -> None:
        """Note that `parameters` left the model."""
        self.dropped.extend(parameters)

    def undo(self) -> None:
        """Take every change back, newest first."""
        while self._undo:
            self._undo.pop()()
        self.slices.clear()
        self.shapes.clear()
        self.dropped.clear()


class Shrinking(Journal):
    """Changes to a model that is of no use to anybody if one of them fails: of weights nothing is remembered.

    Args:
        fill: is called with a weight before it is sliced. One that is still a single zero afterwards,
            expanded to the weight's shape, stays one.
    """

    def __init__(self, fill: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._fill = fill

    def assign(self, parameter: Tensor, value: Tensor) -> None:
        """Write `value`, of the same shape, into `parameter`: the memory that it has is not left behind."""
        parameter.data.copy_(value)

    def slice(self, parameter: Tensor, dim: int, kept: Tensor) -> None:
        """Keep the indices `kept` (int64, ascending) of dimension `dim` of `parameter`."""
        self._fill(parameter)
        if any(parameter.stride()):
            _give(parameter, parameter.data.index_select(dim, kept.to(parameter.device)).contiguous())
        else:
            _give(parameter, parameter.data.narrow(dim, 0, len(kept)))


def _give(parameter: Tensor, value: Tensor) -> None:
    """Let `parameter` have the data `value`, also while an old graph is alive.

    Whoever keeps a loss or outputs keeps the parameter's gradient accumulator, which expects the old shape,
    and which torch takes anew only where the dtype changes.
    """
    if parameter.requires_grad and parameter.shape != value.shape:
        other = torch.float32 if parameter.dtype == torch.float16 else torch.float16
        parameter.data = value.new_empty(0, dtype=other)
    parameter.data = value


def index_tensor(indices: Iterable[int]) -> Tensor:
    """Indices as an int64 tensor, as `Journal.slice` takes them."""
    return torch.tensor(list(indices), dtype=torch.int64)
