"""Make an optimizer follow a cut: the surviving rows keep their moments, removed parameters leave."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.anatomy import layer_modules
from lightpeft.edits import Journal
from lightpeft.surgery.state_layout import Layout, find_layout, inner_optimizer, refusal


def require_followable(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Try out, before a run, whether `optimizer` will survive a cut of the parameters that it trains.

    Warns where it will, but without its state of the parameters that are cut.

    Raises:
        ConfigError: it will not; says what to use instead.
    """
    inner = inner_optimizer(optimizer)
    layouts = _Layouts(inner)
    inside = {id(p) for _, layer in layer_modules(model) for p in layer.parameters() if p.requires_grad}
    trained = [p for group in inner.param_groups for p in group["params"] if id(p) in inside]
    if inside and not trained:
        raise refusal(inner, "it does not hold the parameters that the model trains")
    if any(layouts.of(parameter, parameter.shape) is None for parameter in trained):
        warnings.warn(
            f"the state of {type(inner).__name__} cannot be cut: after the cut its moments start anew for "
            "the parameters that were cut. Use optim='adamw_torch' to keep them.",
            stacklevel=2,
        )


def prepare_to_follow(optimizer: torch.optim.Optimizer, journal: Journal) -> Callable[[], None]:
    """Slice the state of every parameter that `journal` sliced; the result puts it in place.

    What `journal` dropped or left without any entry leaves the optimizer. The `param_groups` stay the same
    objects, so schedulers and wrappers around the optimizer stay valid.

    Raises:
        ConfigError: the optimizer does not survive a cut.
    """
    inner = inner_optimizer(optimizer)
    emptied = [parameter for parameter in journal.slices if parameter.numel() == 0]
    gone = {id(parameter): parameter for parameter in [*journal.dropped, *emptied]}
    layouts = _Layouts(inner)
    states, anew = {}, False
    for parameter, slices in journal.slices.items():
        if parameter in inner.state and id(parameter) not in gone:
            shape = journal.shapes[parameter]
            layout = layouts.of(parameter, shape)
            state = None if layout is None else layout.sliced(inner.state[parameter], shape, slices)
            states[parameter], anew = state or {}, anew or state is None
    if anew:
        warnings.warn(
            f"{type(inner).__name__} keeps state that cannot be cut; it starts anew for the parameters that "
            "were cut.",
            stacklevel=3,
        )

    def follow() -> None:
        inner.state.update(states)
        for group in inner.param_groups:
            _leave(group, gone)
        for parameter in gone.values():
            inner.state.pop(parameter, None)

    return follow


def _leave(group: dict[str, Any], gone: dict[int, Tensor]) -> None:
    """Take parameters out of a group, and their names where they have some."""
    stays = [id(parameter) not in gone for parameter in group["params"]]
    for key in ("params", "param_names"):
        if key in group:
            group[key] = [entry for entry, stay in zip(group[key], stays, strict=True) if stay]


class _Layouts:
    """Layouts of an optimizer's state, found out once per group, type and shape."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._found: dict[tuple[Any, ...], Layout | None] = {}

    def of(self, parameter: Tensor, shape: torch.Size) -> Layout | None:
        """The layout for `parameter`, of this shape before it was cut."""
        group = self._groups[id(parameter)]
        key = (id(group), parameter.dtype, parameter.device, shape)
        if key not in self._found:
            self._found[key] = find_layout(self._optimizer, group, parameter, shape)
        return self._found[key]
