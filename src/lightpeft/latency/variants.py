"""Copies of single layers, cut to some widths as a plan would cut them."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lightpeft.adapters import PeftModule, find_followers, find_modules
from lightpeft.anatomy import Anatomy, Layer, Units, base_of, find_anatomy
from lightpeft.config import Budget
from lightpeft.edits import Journal
from lightpeft.plan import LayerPlan, Plan
from lightpeft.surgery import FirstToken, above_attention, cut_base

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of heads and of neurons that are measured; between them costs are taken as straight lines."""

_ALIGNED = 32
"""Widths are multiples of this, where there are many."""


@dataclass(frozen=True)
class Variant:
    """A copy of a layer."""

    kind: str | None
    """Which units were cut; None where none were."""

    count: int
    """How many of them stay."""

    bare: bool
    """Whether it has no PEFT modules."""

    module: nn.Module


def layers_by_module(anatomy: Anatomy) -> dict[str, list[Layer]]:
    """The layers of each module: one, or two where cross-attention is in it."""
    found: dict[str, list[Layer]] = {}
    for layer in anatomy.layers:
        found.setdefault(layer.module, []).append(layer)
    return found


def alike(model: nn.Module, narrowed: str | None = None) -> dict[str, str]:
    """For each layer's module one of the same shape that stands for it, by names.

    Args:
        narrowed: the layer that will run for the first token alone.
    """
    base, modules = base_of(model), find_modules(model)
    first: dict[tuple[object, ...], str] = {}
    found = {}
    for name, layers in layers_by_module(find_anatomy(model)).items():
        shapes = tuple((units.count, units.size, units.group) for layer in layers for units in layer.units)
        peft = tuple((module.name.removeprefix(name), module.rank) for module in _inside(modules, name))
        kind = (type(base.get_submodule(name)), shapes, peft, name == narrowed)
        found[name] = first.setdefault(kind, name)
    return found


def variants(
    model: nn.Module, name: str, budget: Budget, *, narrowed: bool = False
) -> dict[int, list[Variant]]:
    """Cut copies of the layer `name`, per index in the anatomy; the uncut ones come with the first index.

    Those that are cut have no PEFT modules, whose cost is added by how many of them stay; but there is one of
    each kind of unit, with the fewest above none, that has. The model itself is cut for each, and put back.

    Args:
        narrowed: the copies run for the first token alone, as this layer will.
    """
    anatomy = find_anatomy(model)
    layers = layers_by_module(anatomy)[name]
    found: dict[int, list[Variant]] = {layer.index: [] for layer in layers}
    found[layers[0].index] += [uncut(model, anatomy, name, bare=bare) for bare in (False, True)]
    for layer in layers:
        for units in layer.units:
            grid = _grid(units, budget)
            fewest = min((len(kept) for kept in grid if kept), default=None)
            for kept in grid:
                for bare in (True, False) if len(kept) == fewest else (True,):
                    module = _copied(model, anatomy, name, (layer, units), kept, bare)
                    found[layer.index].append(Variant(units.kind, len(kept), bare, module))
    if narrowed:
        linears = [linear.removeprefix(f"{name}.") for linear in above_attention(model, name)]
        for one in (one for group in found.values() for one in group):
            FirstToken(one.module, [one.module.get_submodule(linear) for linear in linears])
    return found


def uncut(model: nn.Module, anatomy: Anatomy, name: str, *, bare: bool = False) -> Variant:
    """A copy of the layer `name` with all heads and neurons, and with all PEFT modules or (`bare`) none."""
    return Variant(None, 0, bare, _copied(model, anatomy, name, None, (), bare))


def _copied(
    model: nn.Module,
    anatomy: Anatomy,
    name: str,
    cut: tuple[Layer, Units] | None,
    kept: tuple[int, ...],
    bare: bool,
) -> nn.Module:
    base, journal = base_of(model), Journal()
    try:
        if bare:
            for module in _inside(find_modules(model), name):
                module.remove(base, journal)
        if cut is not None:
            cut_base(base, anatomy, _plan(anatomy, *cut, kept), find_followers(model), journal)
        return copy.deepcopy(base.get_submodule(name))
    finally:
        journal.undo()


def _plan(anatomy: Anatomy, layer: Layer, units: Units, kept: tuple[int, ...]) -> Plan:
    """Only some units of one layer go."""
    plans = [
        LayerPlan(
            one.index, one.name, tuple(range(one.heads)), one.heads, tuple(range(one.neurons)), one.neurons
        )
        for one in anatomy.layers
    ]
    mine = plans[layer.index]
    cut = {"heads": mine.heads, "neurons": mine.neurons, units.kind: kept}
    plans[layer.index] = dataclasses.replace(mine, heads=cut["heads"], neurons=cut["neurons"])
    return Plan(anatomy.model_type, tuple(plans), (), Budget(), 0, ())


def _grid(units: Units, budget: Budget) -> list[tuple[int, ...]]:
    """The units that stay at each point below all of them."""
    if units.fixed is not None or units.count == 0:
        return []
    equal = units.splits_groups and (budget.kv_groups == "equal" or units.groups == 1)
    step = units.groups if equal and units.group > 1 else units.group
    if units.kind == "neurons" and units.count >= 4 * _ALIGNED:
        step = _ALIGNED
    least = 0 if units.removable else step
    counts = {max(least, round(share * units.count / step) * step) for share in GRID}
    return [_first(units, count, equal) for count in sorted(counts) if count < units.count]


def _first(units: Units, count: int, equal: bool) -> tuple[int, ...]:
    """So many units: the first ones, or the first of every KV group."""
    if not equal or units.group == 1:
        return tuple(range(count))
    each = count // units.groups
    return tuple(unit for unit in range(units.count) if unit % units.group < each)


def _inside(modules: Sequence[PeftModule], name: str) -> list[PeftModule]:
    return [module for module in modules if module.name.startswith(f"{name}.")]
