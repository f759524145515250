"""Where a PEFT module sits: the layer number in its name, and the rest as a column label."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBERED = re.compile(r"(?:(?P<stack>.*?)\.)?(?P<layer>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Place:
    """Row and column of a PEFT module in a map of the model; a layer of None is outside all layers."""

    layer: int | None
    column: str


def places(names: Sequence[str]) -> dict[str, Place]:
    """The place of each module; names of several stacks keep the stack's name in the column.

    `bert.encoder.layer.3.attention.self.query` is layer 3, column `attention.self.query`.
    """
    found = {name: _NUMBERED.fullmatch(name) for name in names}
    stacks = {match["stack"] for match in found.values() if match}

    def place(name: str, match: re.Match[str] | None) -> Place:
        if match is None:
            return Place(None, name)
        stack = f"{match['stack']}." if len(stacks) > 1 and match["stack"] else ""
        return Place(int(match["layer"]), stack + match["rest"])

    return {name: place(name, match) for name, match in found.items()}
