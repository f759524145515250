"""Cut the frozen base by a plan: rows and columns of its linears, PEFT layers following."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightpeft.adapters import Follower
from lightpeft.anatomy import Anatomy, Layer, Units, attribute_owner, linear_at, own_config
from lightpeft.edits import Journal, index_tensor
from lightpeft.linears import INPUTS, OUTPUTS, as_stored, matrix, width
from lightpeft.plan import LayerPlan, Plan
from lightpeft.surgery.head_inputs import slice_head_inputs
from lightpeft.surgery.skips import SkippedAttention


def cut_base(
    base: PreTrainedModel,
    anatomy: Anatomy,
    plan: Plan,
    followers: Mapping[str, Follower],
    journal: Journal,
) -> None:
    """Make the base's linears smaller; PEFT layers on them keep what matches."""
    cutter = _LinearCutter(base, followers, journal)
    for layer, wanted in zip(anatomy.layers, plan.layers, strict=True):
        for units, kept in layer.with_kept(wanted.heads, wanted.neurons):
            if len(kept) < units.count:
                _cut_rows(base, units, kept, cutter)
                cutter.keep_inputs(units.out, index_tensor(units.channels(kept)))
                if not wanted.skipped:
                    _follow(base, units, kept, journal)


def kept_channels(layer: Layer, wanted: LayerPlan) -> dict[str, Tensor]:
    """Per output projection of a layer, the input channels that stay."""
    planned = layer.with_kept(wanted.heads, wanted.neurons)
    return {units.out: index_tensor(units.channels(kept)) for units, kept in planned}


def kept_rows(base: PreTrainedModel, units: Units, kept: tuple[int, ...]) -> dict[str, Tensor]:
    """Per input-side linear or vector of an uncut model that loses some, the output channels that stay."""
    gone: dict[str, set[int]] = {}
    for rows in units.rows:
        gone.setdefault(rows.name, set()).update(rows.gone(units.count, kept))
    vectors = _vectors(units)
    stay = {}
    for name, channels in gone.items():
        total = len(base.get_parameter(name)) if name in vectors else width(linear_at(base, name), OUTPUTS)
        if channels:
            stay[name] = index_tensor(channel for channel in range(total) if channel not in channels)
    return stay


def _vectors(units: Units) -> set[str]:
    return {rows.name for rows in units.rows if rows.role == "vector"}


def _cut_rows(base: PreTrainedModel, units: Units, kept: tuple[int, ...], cutter: "_LinearCutter") -> None:
    for name, stay in kept_rows(base, units, kept).items():
        if name in _vectors(units):
            cutter.keep_entries(name, stay)
        else:
            cutter.keep_outputs(name, stay)


def _follow(base: PreTrainedModel, units: Units, kept: tuple[int, ...], journal: Journal) -> None:
    """Bring the module's own numbers, its per-head arguments, and, if all units went, itself in line."""
    module = base.get_submodule(units.module)
    if units.kind == "neurons":
        return
    if not kept:
        journal.replace_module(base, units.module, SkippedAttention(module, units))
        return
    if any(name.startswith("config.") for name, _ in units.follow):
        journal.set_attribute(module, "config", own_config(module))
    for name, value in units.attribute_values(kept).items():
        place = attribute_owner(module, name)
        if place is not None:
            journal.set_attribute(*place, value)
    slice_head_inputs(module, units, kept, journal)


def fold_gates(
    base: PreTrainedModel,
    gates: Mapping[str, Tensor],
    followers: Mapping[str, Follower],
    journal: Journal,
) -> None:
    """Multiply the input columns of output projections, and of what else reads them, by gates."""
    for name, values in gates.items():
        linear = linear_at(base, name)
        journal.assign(linear.weight, as_stored(linear, matrix(linear).data * values.to(linear.weight)))
        if name in followers:
            followers[name].scale_inputs(values, journal)


def shift_biases(base: PreTrainedModel, shifts: Mapping[str, Tensor], journal: Journal) -> None:
    """Add to the biases of output projections, giving a bias to those that have none."""
    for name, shift in shifts.items():
        linear = linear_at(base, name)
        if linear.bias is None:
            journal.add_parameter(linear, "bias", shift.to(linear.weight))
        else:
            journal.assign(linear.bias, linear.bias.data + shift.to(linear.bias))


def scale_rows(base: PreTrainedModel, factors: Mapping[str, Tensor], journal: Journal) -> None:
    """Multiply the rows of linears' weights, (d_out,) each; biases stay."""
    for name, factor in factors.items():
        linear = linear_at(base, name)
        weight = matrix(linear).data
        wide = torch.promote_types(weight.dtype, torch.float32)
        scaled = weight.to(wide) * factor.to(weight.device, wide)[:, None]
        journal.assign(linear.weight, as_stored(linear, scaled.to(weight.dtype)))


class _LinearCutter:
    """Cuts a linear by name, together with the PEFT layer on it."""

    def __init__(self, base: nn.Module, followers: Mapping[str, Follower], journal: Journal) -> None:
        self._base, self._followers, self._journal = base, followers, journal

    def keep_outputs(self, name: str, kept: Tensor) -> None:
        self._journal.slice_linear(linear_at(self._base, name), OUTPUTS, kept)
        if name in self._followers:
            self._followers[name].keep_outputs(kept, self._journal)

    def keep_inputs(self, name: str, kept: Tensor) -> None:
        self._journal.slice_linear(linear_at(self._base, name), INPUTS, kept)
        if name in self._followers:
            self._followers[name].keep_inputs(kept, self._journal)

    def keep_entries(self, name: str, kept: Tensor) -> None:
        self._journal.slice(self._base.get_parameter(name), 0, kept)
