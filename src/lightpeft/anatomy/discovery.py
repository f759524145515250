"""Architectures without a row in the table: look for layers, heads and neurons, and write the row.

Only structure is read here: which lists of alike modules there are, and which linears in them fit together.
Whether what was found is right is decided by a probe cut (`lightpeft.surgery.verify_discovered`), which
leaves its `Verdict` on the model.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightpeft.anatomy.rows import (
    FFN,
    Attention,
    AttentionView,
    Layout,
    Stack,
    blocks,
    linear_at,
    row_parameters,
    separate,
)
from lightpeft.anatomy.units import Rows
from lightpeft.anatomy.verdict import Verdict, part_key, verdict_of
from lightpeft.errors import AnatomyError
from lightpeft.linears import INPUTS, OUTPUTS, width_attribute
from lightpeft.wrapping import unwrapped

HEAD_SIZES = (
    "head_dim",
    "attention_head_size",
    "head_size",
    "key_value_proj_dim",
    "d_kv",
    "dim_head",
    "d_head",
)
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_q_heads", "nhead")
GROUP_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv")
GROUP_SIZES = ("num_key_value_groups", "num_kv_groups", "n_rep")
WIDTHS = ("all_head_size", "inner_dim", "split_size", "embed_dim", "hidden_size", "dim", "d_model")
_QUANTITIES = (
    ("heads", HEAD_COUNTS),
    ("groups", GROUP_COUNTS),
    ("group", GROUP_SIZES),
    ("width", WIDTHS),
)
_ROLES = {
    "query": {"q", "wq", "query", "queries"},
    "key": {"k", "wk", "key", "keys"},
    "value": {"v", "wv", "value", "values"},
}
UNPROBED = (
    "how its fused projection is laid out shows only in a probe cut; "
    "call lightpeft.surgery.verify_discovered(model) first"
)
FOUND_BY_LOOKING = "found by looking, not in lightpeft's table"
_Shapes = dict[str, tuple[int, int]]
"""Input and output channels of linears by name."""

_Reading = tuple[tuple[str, ...], str, tuple[int, int]]
"""Input linears, output linear, and the width outside and inside the block."""

T = TypeVar("T")


def by_group(name: str) -> Layout:
    """One linear in which every KV group has its queries, key and value side by side."""

    def layout(view: AttentionView) -> tuple[Rows, ...]:
        linear, size = f"{view.module}.{name}", view.head_size
        groups = (view.width(name) // size - view.heads) // 2
        if groups < 1 or view.heads % groups:
            raise AnatomyError(f"{linear}: {view.width(name)} channels are no KV groups of {size}.")
        cost = row_parameters(linear_at(view.base, linear))
        return (Rows(linear, "fused", 0, view.width(name) // groups, view.heads // groups, cost),)

    return layout


FUSED_LAYOUTS = {"blocks": blocks, "interleaved": by_group}


def discover(base: PreTrainedModel) -> tuple[Stack, ...]:
    """Describe an unknown architecture by its structure (and by the verdict of a probe, if there was one).

    It reads names, classes, widths and integer attributes of modules, and which attributes their methods
    mention; no weights. A model that is already cut gives the same description.

    Raises:
        AnatomyError: no list of alike layers has an attention block; says what was looked for and found.
    """
    encoder = base.base_model
    drafts, misses = [], []
    for path, layers in _layer_lists(encoder):
        draft = _draft(path, layers)
        if isinstance(draft, _Draft):
            drafts.append(draft)
        else:
            misses.append(draft)
    if not drafts:
        raise AnatomyError(
            f"looked in {type(encoder).__name__} for lists of alike layers whose attention has query, key "
            f"and value linears (or one for all three), an output linear and an attribute "
            f"{', '.join(HEAD_SIZES[:3])}, ... that says how wide a head is; "
            + ("; ".join(misses) if misses else "found no list of alike layers")
        )
    titles = _titles([draft.path for draft in drafts])
    verdict = verdict_of(base) or Verdict()
    first, *others = (draft.stack(title, verdict) for draft, title in zip(drafts, titles, strict=True))
    notes = [FOUND_BY_LOOKING, *misses, *([first.note] if first.note else [])]
    return (replace(first, note="; ".join(notes)), *others)


# Lists of layers.


def _layer_lists(encoder: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Path and entries of each innermost list of alike modules with attention in them.

    Lists that differ only by the entry of an outer list are one, with a `*` in its path.
    """
    found: dict[str, list[nn.Module]] = {}
    with_attention = {
        name: list(module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and _are_alike(module) and _may_have_attention(module[0])
    }
    for name, entries in with_attention.items():
        if any(other.startswith(f"{name}.") for other in with_attention):
            continue
        found.setdefault(_starred(name, with_attention), []).extend(entries)
    yield from found.items()


def _are_alike(modules: nn.ModuleList) -> bool:
    return len({type(module) for module in modules}) == 1


def _may_have_attention(layer: nn.Module) -> bool:
    return any(_head_size_attribute(module) is not None for module in _inside(layer).values())


def _starred(name: str, outer: Iterable[str]) -> str:
    for path in outer:
        if name.startswith(f"{path}."):
            rest = name.removeprefix(f"{path}.").partition(".")[2]
            return f"{path}.*.{rest}"
    return name


def _titles(paths: list[str]) -> list[str]:
    """`layer` for a single stack, else by where it is: `encoder`, `text`."""
    if len(paths) == 1:
        return ["layer"]
    heads = [path.partition(".")[0].removesuffix("_model") for path in paths]
    return heads if len(set(heads)) == len(heads) else paths


# One list: rows that fit every layer of it.


@dataclass(frozen=True)
class _Heads:
    """An attention block, names relative to the layer; `inputs` relative to `module`."""

    module: str
    out: str
    head_size: str
    inputs: tuple[str, ...]
    """Query, key and value; or the one fused linear."""

    position: tuple[str, ...] = ()

    def row(
        self, follow: dict[str, str], layout: str | None, whole_groups: bool, fixed: str | None
    ) -> Attention:
        """The description, with what the probe said of it."""
        if len(self.inputs) == 1:
            made = FUSED_LAYOUTS[layout or "blocks"](self.inputs[0])
            fixed = fixed or (UNPROBED if layout is None else None)
        else:
            query, key, value = self.inputs
            made = separate(query, key, value, position=self.position)
        return Attention(
            self.module,
            self.out,
            _in_whole_groups(made) if whole_groups else made,
            head_size=self.head_size,
            follow=follow,
            fixed_if=None if fixed is None else (self.head_size, fixed),
            # What the block returns besides its output is not known, so a skip cannot take its place.
            returns=None,
        )


@dataclass(frozen=True)
class _Draft:
    """The rows of one list of layers, before the verdict."""

    path: str
    attention: _Heads
    attention_follow: dict[str, str]
    cross: _Heads | None
    cross_follow: dict[str, str]
    ffn: FFN | None
    notes: tuple[str, ...]

    def stack(self, title: str, verdict: Verdict) -> Stack:
        """The description of these layers."""
        neurons = part_key(self.path, "neurons")
        notes = list(self.notes)
        if neurons in verdict.refused:
            notes.append(f"{neurons}: {verdict.refused[neurons]}")
        cross = None
        if self.cross is not None:
            cross = self._row(self.cross, self.cross_follow, "cross heads", verdict)
        return Stack(
            self.path,
            self._row(self.attention, self.attention_follow, "heads", verdict),
            None if neurons in verdict.refused else self.ffn,
            cross=cross,
            title=title,
            note="; ".join(notes) or None,
            stays=f"its layers were {FOUND_BY_LOOKING}, and whole ones are not probed",
        )

    def _row(self, heads: _Heads, follow: dict[str, str], part: str, verdict: Verdict) -> Attention:
        key = part_key(self.path, part)
        return heads.row(
            follow, verdict.layouts.get(key), key in verdict.whole_groups, verdict.refused.get(key)
        )


def _draft(path: str, layers: list[nn.Module]) -> _Draft | str:
    """The rows that fit every one of `layers`; in words what is missing, if there is no attention."""
    found = _in_every_layer([list(_attentions(layer)) for layer in layers])
    blocks_found: dict[str, _Heads] = {}
    for heads in found:
        blocks_found.setdefault(heads.module, heads)
    if not blocks_found:
        return f"{path}: {_why_no_attention(layers[0])}"
    chosen = sorted(blocks_found.values(), key=lambda heads: _is_cross(heads.module))
    notes = [f"{path}: a further attention block, {heads.module}, is not cut" for heads in chosen[2:]]
    attention, cross = chosen[0], chosen[1] if len(chosen) > 1 else None
    ffns = _in_every_layer([list(_ffns(layer, chosen)) for layer in layers])
    if not ffns:
        notes.append(f"{path}: {_why_no_ffn(layers, chosen)}")
    notes += [
        f"{path}: a further feed-forward block, ending in {ffn.out}, is not cut"
        for ffn in ffns[1:]
        if not {*ffn.inputs, ffn.out} & {*ffns[0].inputs, ffns[0].out}
    ]
    return _Draft(
        path,
        attention,
        _follow(layers, attention),
        cross,
        {} if cross is None else _follow(layers, cross),
        ffns[0] if ffns else None,
        tuple(notes),
    )


def _in_every_layer(per_layer: list[list[T]]) -> list[T]:
    """What fits all layers, in the order of preference of the first one."""
    first, *others = per_layer
    return [one for one in dict.fromkeys(first) if all(one in other for other in others)]


def _is_cross(module: str) -> bool:
    name = module.rpartition(".")[2].lower()
    return "cross" in name or "enc" in name


# Attention.


def _attentions(layer: nn.Module) -> Iterator[_Heads]:
    """What could be attention blocks of a layer, the likeliest reading of each first."""
    read: list[str] = []
    for name, module in _inside(layer).items():
        attribute = _head_size_attribute(module)
        if attribute is None or any(name.startswith(f"{outer}.") for outer in read):
            continue
        readings = list(_readings(layer, name, module, attribute))
        if readings:
            read.append(name)
            yield from readings


def _readings(layer: nn.Module, name: str, module: nn.Module, attribute: str) -> Iterator[_Heads]:
    size, inside = vars(module)[attribute], _linears(module)
    outside = _around(layer, name)
    separate_inputs = _query_key_value(inside)
    if separate_inputs is not None:
        query, key, value = (inside[one] for one in separate_inputs)
        if key[1] != value[1] or query[1] % size or key[1] % size or not _divides(key[1], query[1]):
            return
        outs = _outs(inside, outside, separate_inputs, query[1])
        readings: list[_Reading] = [(separate_inputs, out, query) for out in outs]
    else:
        readings = [
            ((fused,), out, (inside[fused][0], (inside | outside)[out][0]))
            for fused in inside
            for out in _outs(inside, outside, (fused,), None)
            if _is_fused(inside[fused][1], (inside | outside)[out][0], size)
        ]
    for inputs, out, (hidden, width) in readings:
        if (inside | outside)[out][1] != hidden or not _says(module, width // size):
            continue
        position = tuple(
            one for one, shape in inside.items() if shape == (hidden, width) and one not in (*inputs, out)
        )
        place = f"{name}.{out}" if out in inside else out.removeprefix("/")
        yield _Heads(name, place, attribute, inputs, position)


def _query_key_value(shapes: _Shapes) -> tuple[str, str, str] | None:
    """The linears that are called so; of several (`pos_key_proj`) the one with the shortest name."""
    found = []
    for role in _ROLES:
        named = sorted((name for name in shapes if _role(name) == role), key=lambda name: len(_words(name)))
        if not named or (len(named) > 1 and len(_words(named[0])) == len(_words(named[1]))):
            return None
        found.append(named[0])
    query, key, value = found
    return query, key, value


def _role(name: str) -> str | None:
    roles = [role for role, words in _ROLES.items() if words & set(_words(name))]
    return roles[0] if len(roles) == 1 else None


def _words(name: str) -> list[str]:
    return re.split(r"_+", name.rpartition(".")[2].lower())


def _outs(inside: _Shapes, outside: _Shapes, inputs: tuple[str, ...], width: int | None) -> list[str]:
    """What could be the output projection: in the block itself, or else nearby in the layer."""
    for near in (inside, outside):
        fitting = [name for name, shape in near.items() if name not in inputs and width in (None, shape[0])]
        if fitting:
            return sorted(fitting, key=lambda name: not {"o", "out", "output", "wo"} & set(_words(name)))
    return []


def _is_fused(channels: int, width: int, size: int) -> bool:
    """Whether `channels` are queries of all heads and keys and values of as many or fewer."""
    both = channels - width
    return (
        width > 0 and width % size == 0 and both > 0 and both % (2 * size) == 0 and width % (both // 2) == 0
    )


def _divides(part: int, whole: int) -> bool:
    return whole % part == 0 if part else whole == 0


def _says(module: nn.Module, heads: int) -> bool:
    """Whether the module's own head count, where it has one, is this one."""
    counts = [count for name in HEAD_COUNTS if (count := _integer(module, name)) is not None]
    return not counts or heads in counts


def _around(layer: nn.Module, name: str) -> _Shapes:
    """The linears of the smallest part of a layer around `name` that has any; `/` before each name."""
    while name:
        parent, own = name.rpartition(".")[0], name
        shapes = _linears(layer.get_submodule(parent) if parent else layer)
        prefix = f"{parent}." if parent else ""
        around = {prefix + one: shape for one, shape in shapes.items()}
        found = {f"/{one}": shape for one, shape in around.items() if not one.startswith(f"{own}.")}
        if found:
            return found
        name = parent
    return {}


def _follow(layers: list[nn.Module], heads: _Heads) -> dict[str, str]:
    """The attributes that say, in every layer, what the linears show."""
    found: list[dict[str, str]] = []
    for layer in layers:
        module = layer.get_submodule(heads.module)
        shapes = _linears(layer)
        size, width = vars(module)[heads.head_size], shapes[heads.out][0]
        first, *others = (shapes[f"{heads.module}.{name}"][1] for name in heads.inputs)
        groups = (others[0] if others else (first - width) // 2) // size
        values = {
            "heads": width // size,
            "width": width,
            "groups": groups,
            "group": width // size // max(1, groups),
        }
        found.append(_matching(module, values))
    return {name: quantity for name, quantity in found[0].items() if all(name in one for one in found)}


def _matching(module: nn.Module, values: dict[str, int]) -> dict[str, str]:
    """Attributes of a module, or of the configuration that it reads, with the value they should have."""
    kind: Any = type(module)
    read = _names_read(kind)
    config = getattr(module, "config", None) if "config" in read else None
    follow = {}
    for quantity, names in _QUANTITIES:
        for name in names:
            own = _integer(module, name)
            if own is not None and own == values[quantity] and (quantity != "width" or name in read):
                follow[name] = quantity
            configured = quantity != "width" and name in read and own is None
            if configured and getattr(config, name, None) == values[quantity]:
                follow[f"config.{name}"] = quantity
    return follow


@lru_cache(maxsize=256)
def _names_read(kind: Any) -> frozenset[str]:
    """Attribute names that the methods of a class use, its constructor left out."""
    names: set[str] = set()
    for one in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, method in vars(one).items():
            if name != "__init__" and inspect.isfunction(method):
                names.update(_names_in(inspect.unwrap(method).__code__))
    return frozenset(names)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _in_whole_groups(layout: Layout) -> Layout:
    """The layout with the query heads of a KV group in one piece, so that only whole groups can go."""

    def whole(view: AttentionView) -> tuple[Rows, ...]:
        rows = layout(view)
        share = max(row.share for row in rows)
        return tuple(
            replace(row, size=row.size * (share // row.share), share=share) if row.share < share else row
            for row in rows
        )

    return whole


# Feed-forward blocks.


def _ffns(layer: nn.Module, attentions: list[_Heads]) -> Iterator[FFN]:
    """What could be feed-forward blocks: chains of linears that are all a part of the layer has."""
    left, hidden = _linears_without_attention(layer, attentions), _linears(layer)[attentions[0].out][1]
    parts = sorted(["", *_inside(layer)], key=lambda name: -len(name.split(".")) if name else 0)
    for part in parts:
        yield from _chains({name: shape for name, shape in left.items() if _is_under(name, part)}, hidden)


def _linears_without_attention(layer: nn.Module, attentions: list[_Heads]) -> _Shapes:
    taken = {heads.module for heads in attentions}
    taken |= {name for name, module in _inside(layer).items() if _head_size_attribute(module) is not None}
    outs = {heads.out for heads in attentions}
    return {
        name: shape
        for name, shape in _linears(layer, into_experts=False).items()
        if name not in outs and not any(_is_under(name, part) for part in taken)
    }


def _chains(shapes: _Shapes, hidden: int) -> Iterator[FFN]:
    """Two linears hidden -> inner -> hidden, the first maybe of double width; or two side by side and one."""
    if len(shapes) not in (2, 3):
        return
    for out in reversed(shapes):
        inner, outer = shapes[out]
        inputs = tuple(name for name in shapes if name != out)
        if outer != hidden or any(shapes[name][0] != hidden for name in inputs):
            continue
        for fused in (1, 2) if len(inputs) == 1 else (1,):
            if all(shapes[name][1] == fused * inner for name in inputs):
                yield FFN(inputs, out, fused=fused)


def _why_no_attention(layer: nn.Module) -> str:
    for name, module in _inside(layer).items():
        attribute = _head_size_attribute(module)
        if attribute is not None:
            return (
                f"{name} ({type(module).__name__}) has {attribute} {vars(module)[attribute]}, but in its "
                f"linears ({_in_words(_linears(module))}) there are no query, key, value and output "
                "projection of that head size, alike in every layer, that can be told apart"
            )
    return "no attention block"


def _why_no_ffn(layers: list[nn.Module], attentions: list[_Heads]) -> str:
    left = _linears_without_attention(layers[0], attentions)
    if not left:
        return "no neurons are cut: there are no linears beside the attention (experts are not cut)"
    return (
        f"no neurons are cut: the linears beside the attention ({_in_words(left)}) are no feed-forward block "
        "that is alike in every layer"
    )


def _in_words(shapes: _Shapes) -> str:
    return ", ".join(f"{name} {a}→{b}" for name, (a, b) in shapes.items()) or "none"


# Modules.


def _inside(layer: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in layer.named_modules() if name}


def _is_under(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")


def _head_size_attribute(module: nn.Module) -> str | None:
    return next((name for name in HEAD_SIZES if _integer(module, name)), None)


def _integer(module: nn.Module, name: str) -> int | None:
    value = vars(module).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _linears(module: nn.Module, *, into_experts: bool = True) -> _Shapes:
    """Every base linear in the order of definition, seen through PEFT's wrappers."""
    inner = unwrapped(module)
    if isinstance(inner, nn.Linear | Conv1D):
        inputs, outputs = (getattr(inner, width_attribute(inner, side)) for side in (INPUTS, OUTPUTS))
        return {"": (inputs, outputs)}
    if isinstance(module, nn.ModuleList) and not into_experts and len(module) > 1 and _are_alike(module):
        return {}
    return {
        f"{name}.{below}".rstrip("."): shape
        for name, child in module.named_children()
        for below, shape in _linears(child, into_experts=into_experts).items()
    }
