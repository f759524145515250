"""How a model calls its layers, and calls of copies of them with the same arguments."""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from lightpeft.anatomy import LayerForm, hidden_in
from lightpeft.edits import Journal
from lightpeft.errors import AnatomyError
from lightpeft.surgery import modes_kept


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a layer, and the autocast around it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    device: str
    autocast: torch.dtype | None

    def repeat(self, layer: nn.Module, *, grad: bool) -> Tensor:
        """The hidden states that `layer` puts out; with `grad` its input wants a gradient, as in a stack."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if grad:
            holder, place = _hidden_place(args, kwargs)
            holder[place] = holder[place].detach().requires_grad_()
        enabled = self.autocast is not None
        with torch.autocast(self.device, dtype=self.autocast, enabled=enabled), torch.set_grad_enabled(grad):
            output = layer(*args, **kwargs)
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        return hidden


@dataclass(frozen=True)
class Calls:
    """What was seen of the layers of a model in one run of it, by name."""

    first: dict[str, Call]
    """The arguments of the first call, of layers that they were wanted of."""

    counts: Counter[str]
    forms: dict[str, LayerForm]


def record_calls(
    model: nn.Module, layers: Mapping[str, nn.Module], wanted: Collection[str], batch: Mapping[str, Any]
) -> Calls:
    """Run `model` once in eval mode, and look at its layers."""
    seen = Calls({}, Counter(), {})

    def note(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.counts[name] += 1
        if name in wanted and name not in seen.first:
            seen.first[name] = _call(args, kwargs)

    def learn(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.forms[name] = LayerForm.of(args, kwargs, output)

    with contextlib.ExitStack() as hooks:
        for name, layer in layers.items():
            before = layer.register_forward_pre_hook(partial(note, name), with_kwargs=True)
            after = layer.register_forward_hook(partial(learn, name), with_kwargs=True)
            for handle in (before, after):
                hooks.callback(handle.remove)
        model.eval()
        with torch.no_grad():
            model(**batch)
    return seen


@contextlib.contextmanager
def without_layers(layers: Mapping[str, nn.Module], forms: Mapping[str, LayerForm]) -> Iterator[None]:
    """Let each layer hand on what it is given, with a gradient where one would come back to it."""
    journal = Journal()
    for name, form in forms.items():
        journal.set_own(layers[name], "forward", partial(_hand_on, form))
    try:
        yield
    finally:
        journal.undo()


def _hand_on(form: LayerForm, *args: Any, **kwargs: Any) -> Any:
    hidden = hidden_in(args, kwargs)
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    return form.filled(hidden, args, kwargs)


@contextlib.contextmanager
def left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Give modes, gradients, buffers and random numbers back as they were."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    device = next(model.parameters()).device
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with (
            modes_kept(model),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.enable_grad(),
        ):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A call without the cache of keys and values, which each repetition would make longer."""
    args = tuple(None if isinstance(value, Cache) else value for value in args)
    kwargs = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
    holder, place = _hidden_place(list(args), kwargs)
    device = holder[place].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return Call(args, kwargs, device, autocast)


def _hidden_place(args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Where the hidden states are: the first tensor of floating point."""
    places: list[tuple[Any, Any]] = [(args, place) for place in range(len(args))]
    places += [(kwargs, name) for name in kwargs]
    for holder, place in places:
        value = holder[place]
        if isinstance(value, Tensor) and value.is_floating_point():
            return holder, place
    raise AnatomyError("a layer was called without hidden states, so what it costs cannot be measured.")
