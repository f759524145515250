"""Make an optimizer follow a cut: the surviving rows keep their moments, removed parameters leave."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightpeft.edits import Journal


def prepare_to_follow(optimizer: torch.optim.Optimizer, journal: Journal) -> Callable[[], None]:
    """Slice the state of every parameter that `journal` sliced; the result puts it in place.

    What `journal` dropped leaves the optimizer. The `param_groups` stay the same objects, so schedulers
    and wrappers around the optimizer stay valid.
    """
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    states = {
        parameter: _sliced_state(inner, parameter, slices)
        for parameter, slices in journal.slices.items()
        if parameter in inner.state
    }
    dropped = list(journal.dropped)

    def follow() -> None:
        inner.state.update(states)
        gone = {id(parameter) for parameter in dropped}
        for group in inner.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for parameter in dropped:
            inner.state.pop(parameter, None)

    return follow


def _sliced_state(
    optimizer: torch.optim.Optimizer, parameter: Tensor, slices: list[tuple[int, Tensor]]
) -> dict[str, Any]:
    state = {
        key: _sliced(value, parameter.shape, slices) for key, value in optimizer.state[parameter].items()
    }
    if any(value is None for value in state.values()):
        warnings.warn(
            f"{type(optimizer).__name__} keeps state that is not shaped like its parameter; it starts "
            "anew for the parameters that were cut.",
            stacklevel=3,
        )
        return {}
    return state


def _sliced(value: Any, shape: torch.Size, slices: list[tuple[int, Tensor]]) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.dim() != len(shape):
        return None
    for dim, kept in slices:
        if int(kept.max()) >= value.shape[dim]:
            return None
        value = value.index_select(dim, kept.to(value.device))
    return value.contiguous() if value.shape == shape else None
