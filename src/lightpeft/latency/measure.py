"""Measure what a model and its layers cost: in turns, so that noise hits all alike, and by medians."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightpeft.anatomy import Anatomy, base_of, find_anatomy
from lightpeft.calls import without_labels
from lightpeft.config import Budget, Quantity
from lightpeft.costs import Costs, CostTable, Curve, LayerCosts
from lightpeft.latency.calls import Call, left_as_it_is, record_calls, without_layers
from lightpeft.latency.variants import Variant, alike, layers_by_module, uncut, variants
from lightpeft.memory import LiveBytes, peak_bytes, tensor_bytes
from lightpeft.surgery import last_layer, narrowed

REPEATS, WARMUP = 3, 1
Batch = Mapping[str, Any]
Timeable = Variant | Literal["whole", "rest"]
Timed = Callable[[], tuple[float, float]]
"""Does something once; seconds of its forward pass, and of all of it."""


def measure_costs(
    model: nn.Module,
    batch: Batch,
    quantity: Quantity,
    budget: Budget,
    key: dict[str, Any],
    *,
    narrows: bool = False,
) -> CostTable:
    """Measure the uncut model with all its PEFT modules, and copies of its layers.

    Layers of one shape share a measurement. It takes a few steps' time; the model, its gradients and the
    random numbers of the run are left as they are.

    Args:
        batch: arguments of the model's forward, on its device.
        quantity: not `parameters`.
        budget: says how KV groups are cut.
        narrows: whether the last layer will run for the first token alone.
    """
    device = next(model.parameters()).device
    begun = _now(device)
    with left_as_it_is(model):
        measured = _Measured(model, batch, budget, narrows)
        if quantity == "memory":
            forward = train = None
            held = measured.bytes()
        else:
            forward, train = measured.times(trains=quantity == "training")
            held = None
    return CostTable(key, _now(device) - begun, forward, train, held, measured.weights())


def seconds_of_forward(model: nn.Module, batch: Batch) -> float:
    """Median seconds of a forward pass in eval mode, as the table has it of the uncut model."""
    with left_as_it_is(model):
        action = _whole(model, batch, trains=False)
        return statistics.median([action()[1] for _ in range(WARMUP + 2 * REPEATS)][WARMUP:])


def step_bytes(model: nn.Module, batch: Batch) -> int:
    """Bytes at the peak of a forward and backward pass, weights included."""
    with left_as_it_is(model):
        return peak_bytes(model, lambda: _backward(model, batch))


class _Measured:
    """Copies of a model's layers, one for each shape and width."""

    def __init__(self, model: nn.Module, batch: Batch, budget: Budget, narrows: bool) -> None:
        base = base_of(model)
        self._model, self._batch = model, batch
        self._narrowed = last_layer(model) if narrows else None
        self._anatomy: Anatomy = find_anatomy(model)
        self._alike = alike(model, self._narrowed)
        self._layers = {name: base.get_submodule(name) for name in self._alike}
        names = set(self._alike.values())
        self._seen = record_calls(model, self._layers, names, batch)
        self._variants = {
            name: variants(model, name, budget, narrowed=name == self._narrowed)
            for name in names
            if name in self._seen.first
        }

    def times(self, *, trains: bool) -> tuple[Costs, Costs | None]:
        """Seconds of forward passes, and of forward and backward."""
        whole = _whole(self._model, self._batch, trains=trains)
        actions: dict[Timeable, Timed] = {"whole": whole, "rest": self._without_layers(whole)}
        for name, found in self._variants.items():
            for variant in (variant for group in found.values() for variant in group):
                actions[variant] = _part(variant.module, self._seen.first[name], trains=trains)
        wide = None
        if self._narrowed is not None:
            wide = uncut(self._model, self._anatomy, self._narrowed)
            actions[wide] = _part(wide.module, self._seen.first[self._narrowed], trains=trains)
        taken: dict[Timeable, list[tuple[float, float]]] = {one: [] for one in actions}
        for number in range(WARMUP + REPEATS):
            for one, action in actions.items():
                if one == "whole" and number < WARMUP:  # the run has warmed it up, and it takes the longest
                    continue
                seconds = action()
                if number >= WARMUP:
                    taken[one].append(seconds)
        forward, train = (
            {one: statistics.median(each[part] for each in values) for one, values in taken.items()}
            for part in (0, 1)
        )
        return self._scaled(forward, wide), self._scaled(train, wide) if trains else None

    def bytes(self) -> Costs:
        """Those at the peak of a step; of a layer its weights, and what its backward pass needs."""
        whole = step_bytes(self._model, self._batch)
        narrow = whole
        if self._narrowed is not None:
            with narrowed(self._model):
                narrow = step_bytes(self._model, self._batch)
        return self._costs(whole, self._held(), max(0, whole - narrow))

    def _held(self) -> dict[Variant, float]:
        return {
            one: float(tensor_bytes(one.module) + _held_bytes(one.module, self._seen.first[name]))
            for name, found in self._variants.items()
            for group in found.values()
            for one in group
        }

    def weights(self) -> tuple[float, ...]:
        """Bytes of each layer's weights; those inside another layer's have none of their own."""
        firsts = {group[0].index: name for name, group in layers_by_module(self._anatomy).items()}
        return tuple(
            float(tensor_bytes(self._layers[firsts[layer.index]])) if layer.index in firsts else 0.0
            for layer in self._anatomy.layers
        )

    def _costs(self, whole: float, found: Mapping[Variant, float], saved: float) -> Costs:
        """Of every layer, from the costs of the copies; layers that are called more often cost more."""
        layers: dict[int, LayerCosts] = {}
        for name, group in layers_by_module(self._anatomy).items():
            stands = self._alike[name]
            measured = self._variants.get(stands)
            if measured is None:
                layers |= {layer.index: LayerCosts(0.0, 0.0, None, None) for layer in group}
                continue
            curves = list(measured.values())
            times = max(1, self._seen.counts[name])
            uncut = {one.bare: found[one] * times for one in curves[0] if one.kind is None}
            for place, layer in enumerate(group):
                own = uncut if place == 0 else {False: 0.0, True: 0.0}
                lines: dict[str, Curve | None] = {}
                for kind, count in (("heads", layer.heads), ("neurons", layer.neurons)):
                    lines[kind] = _curve(curves[place], kind, count, found, uncut[True], times)
                    lines[f"{kind}_peft"] = _peft_curve(curves[place], kind, count, found, uncut, times)
                layers[layer.index] = LayerCosts(own[False], min(own[True], own[False]), **lines)
        return Costs(whole, tuple(layers[index] for index in sorted(layers)), saved)

    def _without_layers(self, whole: Timed) -> Timed:
        """The model as if it had no layers."""

        def run() -> tuple[float, float]:
            with without_layers(self._layers, self._seen.forms):
                return whole()

        return run

    def _scaled(self, found: Mapping[Timeable, float], wide: Variant | None) -> Costs:
        """Costs of layers in their places. Alone they find more of their weights in the processor cache, so
        together they seldom take what lies between the whole model and one without layers.

        Args:
            wide: the last layer for all tokens, where it will run for the first one alone.
        """
        alone = {one: cost for one, cost in found.items() if isinstance(one, Variant)}
        layers = self._costs(found["whole"], alone, 0.0).layers
        saved = 0.0
        if wide is not None and self._narrowed is not None:
            narrow = next(iter(self._variants[self._narrowed].values()))[0]
            saved = max(0.0, alone[wide] - alone[narrow])
        together = saved + math.fsum(layer.whole for layer in layers)
        scale = max(0.0, found["whole"] - found["rest"]) / together if together > 0 else 1.0
        scaled = {one: scale * cost for one, cost in alone.items()}
        return self._costs(found["whole"], scaled, scale * saved)


def _curve(
    group: list[Variant], kind: str, count: int, found: Mapping[Variant, float], uncut: float, times: int
) -> Curve | None:
    points = sorted((one.count, found[one] * times) for one in group if one.kind == kind and one.bare)
    if not points:
        return None
    counts, costs = zip(*points, (count, uncut), strict=True)
    return Curve(counts, costs)


def _peft_curve(
    group: list[Variant],
    kind: str,
    count: int,
    found: Mapping[Variant, float],
    uncut: Mapping[bool, float],
    times: int,
) -> Curve | None:
    """Of the PEFT modules alone: with few units, and with all."""
    few = next((one for one in group if one.kind == kind and not one.bare), None)
    if few is None:
        return None
    bare = next(one for one in group if one.bare and (one.kind, one.count) == (kind, few.count))
    costs = ((found[few] - found[bare]) * times, uncut[False] - uncut[True])
    return Curve((few.count, count), tuple(max(0.0, cost) for cost in costs))


def _whole(model: nn.Module, batch: Batch, *, trains: bool) -> Timed:
    """A forward pass of the model, or one with its backward pass."""
    device = next(model.parameters()).device
    inputs = dict(batch) if trains else without_labels(model, batch)

    def run() -> tuple[float, float]:
        model.train(trains)
        start = _now(device)
        with torch.set_grad_enabled(trains):
            output = model(**inputs)
        between = _now(device)
        if trains:
            _loss(output).backward()
            model.zero_grad(set_to_none=True)
        return between - start, _now(device) - start

    return run


def _part(layer: nn.Module, call: Call, *, trains: bool) -> Timed:
    """The same of one layer."""
    device = torch.device(call.device)

    def run() -> tuple[float, float]:
        layer.train(trains)
        start = _now(device)
        hidden = call.repeat(layer, grad=trains)
        between = _now(device)
        if trains:
            hidden.backward(torch.ones_like(hidden))
            layer.zero_grad(set_to_none=True)
        return between - start, _now(device) - start

    return run


def _backward(model: nn.Module, batch: Batch) -> None:
    model.train()
    _loss(model(**batch)).backward()
    model.zero_grad(set_to_none=True)


def _loss(output: Any) -> Tensor:
    """The loss, or where the model was given no labels, something to go back from."""
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    values = output.values() if isinstance(output, Mapping) else output
    first = next(value for value in values if isinstance(value, Tensor) and value.requires_grad)
    return first.float().mean()


def _held_bytes(layer: nn.Module, call: Call) -> int:
    """What is held after a forward pass in training until the backward pass."""
    layer.train()
    if call.device == "cuda":
        before = torch.cuda.memory_allocated()
        hidden = call.repeat(layer, grad=True)
        held = torch.cuda.memory_allocated() - before
    else:
        live = LiveBytes()
        with live:
            hidden = call.repeat(layer, grad=True)
        held = live.now
    del hidden
    return held


def _now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given.

    On the CPU those in which this thread runs, so that other programs on the machine do not count.
    """
    if device.type == "cpu":
        return time.thread_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
