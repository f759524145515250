"""What may go so that the cut model is an ordinary one with another configuration."""

import dataclasses
from collections.abc import Iterable

from lightpeft.anatomy import Anatomy, Layer, Units
from lightpeft.errors import PlanError

Shared = tuple[str, tuple[tuple[str, str], ...]]
"""The kind of units, and the keys of the configuration that say their number for all that share them."""


def evened(anatomy: Anatomy) -> Anatomy:
    """The same, in which everything stays that the configuration cannot say otherwise."""
    reasons = _reasons(anatomy)

    def fixed(units: Units | None) -> Units | None:
        if units is None:
            return None
        reason = units.fixed or reasons.get(_shared(units))
        return dataclasses.replace(units, fixed=reason, returns=None)

    return dataclasses.replace(
        anatomy,
        layers=tuple(
            dataclasses.replace(
                layer,
                attention=fixed(layer.attention),
                ffn=fixed(layer.ffn),
                stays=layer.stays or layer.unsaid,
            )
            for layer in anatomy.layers
        ),
    )


def require_something(anatomy: Anatomy, may_skip: bool) -> None:
    """Refuse a model of which nothing at all can go evenly.

    Args:
        anatomy: what `evened` gave.
        may_skip: whether whole layers may go.

    Raises:
        PlanError: it is one.
    """
    units = [units for layer in anatomy.layers for units in layer.units]
    if any(one.fixed is None for one in units) or (may_skip and anatomy.skippable):
        return
    why = "; ".join(dict.fromkeys(f"{one.kind} stay, because {one.fixed}" for one in units))
    layers = ""
    if anatomy.skippable:
        layers = " Whole layers can go: budget.layers (or target.cuts=depth)."
    raise PlanError(
        f"budget.uniform leaves nothing of {anatomy.model_type} to cut: {why}.{layers} Or leave "
        "budget.uniform out; lightpeft export --to merged writes such a model."
    )


def _reasons(anatomy: Anatomy) -> dict[Shared, str]:
    """Why units stay whose number the configuration says in one place."""
    sharing: dict[Shared, list[tuple[Layer, Units]]] = {}
    for layer in anatomy.layers:
        for units in layer.units:
            sharing.setdefault(_shared(units), []).append((layer, units))
    found = {shared: _reason(members) for shared, members in sharing.items()}
    return {shared: reason for shared, reason in found.items() if reason is not None}


def _reason(members: Iterable[tuple[Layer, Units]]) -> str | None:
    first: Units | None = None
    for layer, units in members:
        first = first or units
        if units.unsaid is not None:
            return units.unsaid
        if units.fixed is not None:
            return f"the configuration has one number for all, and those of {layer.name} stay"
        if (units.count, units.group) != (first.count, first.group):
            return "the configuration has one number for all, and the layers differ in it already"
    return None


def _shared(units: Units) -> Shared:
    return units.kind, units.keys
