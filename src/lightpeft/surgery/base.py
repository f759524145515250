"""Cut the frozen base by a plan: rows and columns of its linears, LoRA pairs following."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightpeft.adapters import LoraModule
from lightpeft.anatomy import Anatomy, Layer, linear_at
from lightpeft.edits import Journal, index_tensor
from lightpeft.plan import LayerPlan, Plan


def cut_base(
    base: PreTrainedModel,
    anatomy: Anatomy,
    plan: Plan,
    modules: Iterable[LoraModule],
    journal: Journal,
) -> None:
    """Make the base's linears smaller; LoRA pairs on them keep the matching rows and columns."""
    cutter = _LinearCutter(base, {module.name: module for module in modules}, journal)
    for layer, wanted in zip(anatomy.layers, plan.layers, strict=True):
        _cut_heads(base, layer, wanted, cutter, journal)
        _cut_neurons(layer, wanted, cutter)


def kept_channels(layer: Layer, wanted: LayerPlan) -> dict[str, Tensor]:
    """Per output projection of a layer, the input channels that stay."""
    size = layer.attention.head_size
    channels = [head * size + offset for head in wanted.heads for offset in range(size)]
    return {
        layer.attention.out: index_tensor(channels),
        layer.ffn.out: index_tensor(wanted.neurons),
    }


def fold_gates(
    base: PreTrainedModel,
    gates: Mapping[str, Tensor],
    modules: Iterable[LoraModule],
    journal: Journal,
) -> None:
    """Multiply the input columns of output projections, and of the LoRA pairs on them, by gates."""
    by_name = {module.name: module for module in modules}
    for name, values in gates.items():
        weight = linear_at(base, name).weight
        journal.assign(weight, weight.data * values.to(weight))
        if name in by_name:
            by_name[name].scale_inputs(values, journal)


def fold_pairs(base: PreTrainedModel, pairs: Mapping[str, tuple[Tensor, Tensor]], journal: Journal) -> None:
    """Add frozen low-rank pairs to the base's linears: W += left @ right."""
    for name, (left, right) in pairs.items():
        weight = linear_at(base, name).weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        delta = left.to(weight.device, wide) @ right.to(weight.device, wide)
        journal.assign(weight, (weight.data.to(wide) + delta).to(weight.dtype))


def shift_biases(base: PreTrainedModel, shifts: Mapping[str, Tensor], journal: Journal) -> None:
    """Add to the biases of output projections, giving a bias to those that have none."""
    for name, shift in shifts.items():
        linear = linear_at(base, name)
        if linear.bias is None:
            journal.add_parameter(linear, "bias", shift.to(linear.weight))
        else:
            journal.assign(linear.bias, linear.bias.data + shift.to(linear.bias))


class _LinearCutter:
    """Cuts a linear by name, together with the LoRA pair on it."""

    def __init__(self, base: nn.Module, modules: dict[str, LoraModule], journal: Journal) -> None:
        self._base, self._modules, self._journal = base, modules, journal

    def keep_outputs(self, name: str, kept: Tensor) -> None:
        self._journal.slice_linear(linear_at(self._base, name), 0, kept)
        if name in self._modules:
            self._modules[name].keep_outputs(kept, self._journal)

    def keep_inputs(self, name: str, kept: Tensor) -> None:
        self._journal.slice_linear(linear_at(self._base, name), 1, kept)
        if name in self._modules:
            self._modules[name].keep_inputs(kept, self._journal)


def _cut_heads(
    base: nn.Module, layer: Layer, wanted: LayerPlan, cutter: _LinearCutter, journal: Journal
) -> None:
    site = layer.attention
    if len(wanted.heads) == site.heads:
        return
    kept = kept_channels(layer, wanted)[site.out]
    for name in (site.query, site.key, site.value):
        cutter.keep_outputs(name, kept)
    cutter.keep_inputs(site.out, kept)
    attention = base.get_submodule(site.module)
    journal.set_attribute(attention, site.head_count, len(wanted.heads))
    if site.head_width is not None:
        journal.set_attribute(attention, site.head_width, len(kept))


def _cut_neurons(layer: Layer, wanted: LayerPlan, cutter: _LinearCutter) -> None:
    if len(wanted.neurons) == layer.ffn.neurons:
        return
    kept = torch.as_tensor(wanted.neurons, dtype=torch.int64)
    for name in layer.ffn.inputs:
        cutter.keep_outputs(name, kept)
    cutter.keep_inputs(layer.ffn.out, kept)
