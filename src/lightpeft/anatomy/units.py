"""What can be cut, as data: units at an output projection, layers, and the whole anatomy."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from lightpeft.errors import PlanError
from lightpeft.indices import format_indices

Kind = Literal["heads", "neurons"]
K = TypeVar("K", bound=Collection[int])
_NUMBERED = re.compile(r"(.+?) (\d+)( .+)?")
_MOST_KINDS = 12
CROSS = " cross-attention"
"""Ends the name of a layer's cross-attention."""


@dataclass(frozen=True)
class HeadInput:
    """An argument of an attention module with one value per head, such as a relative position bias."""

    name: str
    returned_at: int | None = None
    """Where the module hands it on in its output."""


@dataclass(frozen=True)
class Rows:
    """Output channels of a linear (or entries of a vector) that go with units.

    Owner u has the `size` channels from `start + u · size` on; an owner is one unit, or `share` units
    together, as the query heads of a KV group own its keys and values.
    """

    name: str
    """The linear or vector, relative to the base model."""

    role: str
    """`query`, `key`, `value`, `fused` (all of them), `position`, `input`, or `vector`."""

    start: int
    size: int
    share: int
    cost: int
    """Parameters per channel."""

    def gone(self, units: int, kept: Collection[int]) -> Iterable[int]:
        """The channels that nobody owns any more."""
        owners = {unit // self.share for unit in kept}
        for owner in range(units // self.share):
            if owner not in owners:
                first = self.start + owner * self.size
                yield from range(first, first + self.size)


@dataclass(frozen=True)
class Units:
    """The units at one output projection: query heads, or FFN neurons."""

    kind: Kind
    module: str
    """The attention or FFN module; its attributes and its place as a skip."""

    out: str
    """The output projection; its inputs are the units' channels."""

    count: int
    size: int
    """Input channels of `out` per unit."""

    rows: tuple[Rows, ...]
    out_cost: int
    """Parameters of `out` per unit."""

    group: int = 1
    """Query heads per KV head."""

    splits_groups: bool = True
    """Whether an equal number of heads may go from every KV group, instead of whole groups."""

    follow: tuple[tuple[str, str], ...] = ()
    """Attributes of `module` and what they must say: `heads`, `width`, `groups` or `group`."""

    head_inputs: tuple[HeadInput, ...] = ()
    """Arguments of `module` that a cut must slice."""

    fixed: str | None = None
    """Why these units cannot be cut."""

    returns: int | None = None
    """Length of the tuple that the module returns; None where it cannot go altogether."""

    keys: tuple[tuple[str, str], ...] = ()
    """Keys of the configuration, and what they say where every layer has as many of these units: the number
    of `neurons`, of `heads` or KV `groups`, or the `size` of a head."""

    divides: int | None = None
    """What the number of these units has to divide for the configuration to say it."""

    unsaid: str | None = None
    """Why the configuration cannot say another number of them."""

    @property
    def removable(self) -> bool:
        """Whether all of them may go."""
        return self.fixed is None and self.returns is not None

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears of these units, each once, inputs first."""
        return (*dict.fromkeys(row.name for row in self.rows if row.role != "vector"), self.out)

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.count // self.group

    def channels(self, kept: Iterable[int]) -> list[int]:
        """Input channels of `out` that stay with the units `kept`."""
        return [unit * self.size + offset for unit in kept for offset in range(self.size)]

    def parameters(self, kept: Collection[int]) -> int:
        """Parameters that go when only `kept` stay are not in here; those of `kept` are."""
        shared = sum(len({unit // r.share for unit in kept}) * r.size * r.cost for r in self.rows)
        return shared + len(kept) * self.out_cost

    def attribute_values(self, kept: Sequence[int]) -> dict[str, int]:
        """What the attributes of `follow` must say when `kept` stay."""
        return self._say(self.follow, kept)

    def key_values(self, kept: Sequence[int]) -> dict[str, int]:
        """What the configuration of an ordinary model must say when `kept` stay in every layer."""
        return self._say(self.keys, kept)

    def _say(self, names: Iterable[tuple[str, str]], kept: Sequence[int]) -> dict[str, int]:
        groups = len({unit // self.group for unit in kept})
        quantities = {
            "heads": len(kept),
            "neurons": len(kept),
            "width": len(kept) * self.size,
            "size": self.size,
            "groups": groups,
            "group": len(kept) // max(1, groups),
        }
        return {name: quantities[quantity] for name, quantity in names}

    def check(self, kept: Collection[int], where: str) -> None:
        """Check that a model can have just these units.

        Raises:
            PlanError: a KV group would be torn, or units go that cannot.
        """
        if len(kept) == self.count:
            return
        if self.fixed is not None:
            raise PlanError(f"{where}: {self.kind} cannot be cut, because {self.fixed}.")
        if not kept and not self.removable:
            raise PlanError(f"{where}: all {self.kind} would go, which this architecture cannot express.")
        sizes = dict.fromkeys(sorted({unit // self.group for unit in kept}), 0)
        for unit in kept:
            sizes[unit // self.group] += 1
        whole = all(size == self.group for size in sizes.values())
        if not (whole or (self.splits_groups and len(set(sizes.values())) == 1)):
            raise PlanError(
                f"{where}: query heads per KV group would be {list(sizes.values())}; keep whole groups of "
                f"{self.group}{' or an equal number in every group' if self.splits_groups else ''}."
            )


@dataclass(frozen=True)
class Layer:
    """One attention block, one feed-forward block, or both, and what they cost in parameters."""

    index: int
    name: str
    module: str
    """The layer's module, relative to the base model."""

    attention: Units | None
    ffn: Units | None
    fixed_parameters: int
    """Parameters of the layer that no cut of units touches (norms, output biases)."""

    stays: str | None = None
    """Why the layer cannot be skipped."""

    unsaid: str | None = None
    """Why the configuration of an ordinary model cannot do without the layer."""

    @property
    def title(self) -> str:
        """That of its stack."""
        return _parts(self.name)[0]

    @property
    def units(self) -> tuple[Units, ...]:
        """Attention and FFN, where there are any."""
        return tuple(units for units in (self.attention, self.ffn) if units is not None)

    @property
    def heads(self) -> int:
        """Query heads; 0 without attention."""
        return 0 if self.attention is None else self.attention.count

    @property
    def neurons(self) -> int:
        """FFN neurons; 0 without a feed-forward block."""
        return 0 if self.ffn is None else self.ffn.count

    def parameters(self, heads: Collection[int] | None = None, neurons: Collection[int] | None = None) -> int:
        """Parameters of this layer with these units, by default all."""
        pairs = self.with_kept(
            range(self.heads) if heads is None else heads, range(self.neurons) if neurons is None else neurons
        )
        return self.fixed_parameters + sum(units.parameters(kept) for units, kept in pairs)

    def with_kept(self, heads: K, neurons: K) -> list[tuple[Units, K]]:
        """Attention and FFN, where there are any, each with what is kept of it."""
        pairs = ((self.attention, heads), (self.ffn, neurons))
        return [(units, kept) for units, kept in pairs if units is not None]

    def describe(self) -> str:
        """One line: what can be cut."""
        parts = []
        if self.attention is not None:
            site = self.attention
            text = f"{site.count} heads of {site.size}"
            if site.group > 1:
                text += f" in KV groups of {site.group}"
                text += "" if site.splits_groups else ", whole groups only"
            parts.append(text + (f" (fixed: {site.fixed})" if site.fixed else ""))
        if self.ffn is not None:
            parts.append(
                f"{self.ffn.count} FFN neurons" + (f" (fixed: {self.ffn.fixed})" if self.ffn.fixed else "")
            )
        if self.attention is not None and self.stays is not None and self.attention.fixed == self.stays:
            parts.append("cannot be skipped")
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True)
class Anatomy:
    """Where the units of a model live."""

    model_type: str
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()
    """What cannot be cut, in words."""

    @property
    def parameters(self) -> int:
        """Parameters of all layers (embeddings and heads on top are not counted)."""
        return sum(layer.parameters() for layer in self.layers)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of the layers, each once, in the order of `layers`."""
        return tuple(dict.fromkeys(layer.module for layer in self.layers))

    @property
    def stacks(self) -> tuple[tuple[str, ...], ...]:
        """The modules of the layers of each stack, lowest first; an encoder before its decoder."""
        found: dict[str, dict[str, None]] = {}
        for layer in self.layers:
            found.setdefault(layer.title, {})[layer.module] = None
        return tuple(tuple(modules) for modules in found.values())

    @property
    def lowest_stack(self) -> tuple[str, ...]:
        """The modules of the layers that run first, lowest first; of an encoder-decoder the encoder's."""
        return self.stacks[0]

    @property
    def skippable(self) -> tuple[str, ...]:
        """The modules of the layers that can be skipped, in the order of `layers`."""
        staying = {layer.module for layer in self.layers if layer.stays is not None}
        return tuple(module for module in self.modules if module not in staying)

    def parts_of(self, module: str) -> tuple[Layer, ...]:
        """What is in the layer of this module: itself, and its cross-attention where it has one."""
        return tuple(layer for layer in self.layers if layer.module == module)

    def check_skips(self, skipped: Collection[int]) -> None:
        """Whether the layers of these indices can be skipped, and no others have to be with them.

        Raises:
            PlanError: a layer that stays, a part of a layer, or every layer of a stack.
        """
        for layer in self.layers:
            if layer.index in skipped and layer.stays is not None:
                raise PlanError(f"{layer.name} cannot be skipped: {layer.stays}.")
            odd = [one.name for one in self.parts_of(layer.module) if one.index not in skipped]
            if layer.index in skipped and odd:
                raise PlanError(
                    f"{layer.name} is to be skipped, but {odd[0]}, which is of one module, stays."
                )
        for modules in self.stacks:
            parts = [one for module in modules for one in self.parts_of(module)]
            if all(one.index in skipped for one in parts):
                raise PlanError(f"all of {parts[0].name} to {parts[-1].name} would go; at least one stays.")

    def layer_of(self, linear: str) -> Layer | None:
        """The layer whose heads or neurons a linear holds."""
        holding = (layer for layer in self.layers if any(linear in units.linears for units in layer.units))
        return next(holding, None)

    def describe(self) -> str:
        """What can be cut: one line for layers that are alike, at most a dozen, and the notes."""
        lines = [f"{self.model_type}: {len(self.layers)} layers, {self.parameters:,} parameters"]
        kinds = together([layer.describe() for layer in self.layers])
        lines += [f"  {line}" for line in kinds[:_MOST_KINDS]]
        if len(kinds) > _MOST_KINDS:
            lines.append(f"  and {len(kinds) - _MOST_KINDS} more kinds of layers")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def together(lines: Sequence[str]) -> list[str]:
    """`layer 0: x`, `layer 1: x` as `layer 0-1: x`, whatever stands between them."""
    numbers: dict[tuple[str, str, str], list[int]] = {}
    for line in lines:
        name, _, what = line.partition(": ")
        title, number, part = _parts(name)
        numbers.setdefault((title, part, what), []).append(number)
    return [f"{title} {format_indices(n)}{part}: {what}" for (title, part, what), n in numbers.items()]


def _parts(name: str) -> tuple[str, int, str]:
    """The name of a layer as the title of its stack, its number in there, and which part of it."""
    found = _NUMBERED.fullmatch(name)
    if found is None:
        raise PlanError(f"{name!r} is not the name of a layer.")
    return found[1], int(found[2]), found[3] or ""
