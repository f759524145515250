"""Where gates go in a model, and which slice of the flat statistics each place owns."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightpeft.adapters import LoraModule
from lightpeft.anatomy import Anatomy


@dataclass(frozen=True)
class Site:
    """One place with gates: units `start` to `stop` of the flat vector over all units."""

    kind: str
    """`heads`, `neurons` or `ranks`."""

    module: str
    """The module, relative to the base model, whose input is gated."""

    owner: int
    """Layer index, or position of the PEFT module."""

    start: int
    stop: int

    @property
    def units(self) -> int:
        """Gates at this place."""
        return self.stop - self.start

    @property
    def span(self) -> slice:
        """This place in the flat vector."""
        return slice(self.start, self.stop)


def find_sites(anatomy: Anatomy, modules: Sequence[LoraModule]) -> tuple[Site, ...]:
    """All places, base units first."""
    places: list[tuple[str, str, int, int]] = [
        (units.kind, units.out, layer.index, units.count) for layer in anatomy.layers for units in layer.units
    ]
    for position, module in enumerate(modules):
        name = f"{module.name}.lora_B.{module.adapter}"
        places.append(("ranks", name, position, module.rank))
    sites, start = [], 0
    for kind, name, owner, count in places:
        sites.append(Site(kind, name, owner, start, start + count))
        start += count
    return tuple(sites)
