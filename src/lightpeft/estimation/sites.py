"""Where gates go in a model, and which slice of the flat statistics each place owns."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightpeft.adapters import PeftModule
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
    channels: int
    """Input channels of the module, the same number for each unit."""

    averaged: bool
    """Whether the mean of each channel is wanted."""

    @property
    def units(self) -> int:
        """Gates at this place."""
        return self.stop - self.start

    @property
    def span(self) -> slice:
        """This place in the flat vector."""
        return slice(self.start, self.stop)


def find_sites(anatomy: Anatomy, modules: Sequence[PeftModule]) -> tuple[Site, ...]:
    """All places, base units first."""
    sites: list[Site] = []

    def add(kind: str, module: str, owner: int, units: int, channels: int, averaged: bool) -> None:
        start = sites[-1].stop if sites else 0
        sites.append(Site(kind, module, owner, start, start + units, channels, averaged))

    for layer in anatomy.layers:
        for units in layer.units:
            add(units.kind, units.out, layer.index, units.count, units.count * units.size, True)
    for position, one in enumerate(modules):
        add("ranks", one.gated, position, one.rank, one.rank, not one.is_linear)
    return tuple(sites)
