"""Find the units of a model: which linears hold heads and neurons, and what each of them costs."""

import copy
import difflib
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightpeft.anatomy.discovery import discover
from lightpeft.anatomy.families import FAMILIES
from lightpeft.anatomy.rows import FFN, Attention, AttentionView, Stack, Stock, linear_at, row_parameters
from lightpeft.anatomy.stock import sayable, why_not_left_out
from lightpeft.anatomy.units import CROSS, Anatomy, Layer, Rows, Units
from lightpeft.errors import AnatomyError
from lightpeft.linears import INPUTS, OUTPUTS, is_packed, is_quantised, width
from lightpeft.wrapping import base_parameters

_CONFIG = "config."


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, which may be a `PeftModel` around it."""
    from peft import PeftModel  # not above: see `lightpeft.wrapping`

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise AnatomyError(
            f"expected a transformers model or a PeftModel around one, found {type(inner).__name__}."
        )
    return inner


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find heads and FFN neurons of `model` (plain or wrapped by PEFT, whole or already cut).

    Raises:
        AnatomyError: unknown architecture, or a layer that does not look as its family says.
    """
    base = base_of(model)
    layers: list[Layer] = []
    notes: list[str] = []
    for stack, name, index in _placed_layers(base):
        layers += _find_layer(base, stack, name, index, first=len(layers))
        if stack.note is not None and stack.note not in notes:
            notes.append(stack.note)
    return Anatomy(model_type=base.config.model_type, layers=tuple(layers), notes=tuple(notes))


def layer_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each layer, lowest first."""
    base = base_of(model)
    for stack, name, index in _placed_layers(base):
        yield f"{stack.title} {index}", base.get_submodule(name)


def lowest_stack(model: nn.Module) -> list[str]:
    """Names, relative to the base, of the layers that run first; of an encoder-decoder the encoder's."""
    placed = list(_placed_layers(base_of(model)))
    return [name for stack, name, _ in placed if stack is placed[0][0]]


def attribute_owner(module: nn.Module, name: str) -> tuple[object, str] | None:
    """The object and attribute that an entry of `Units.follow` means; None where there is no such."""
    owner: object = module.config if name.startswith(_CONFIG) else module
    attribute = name.removeprefix(_CONFIG)
    return (owner, attribute) if getattr(owner, attribute, None) is not None else None


def own_config(module: nn.Module) -> object:
    """A copy of the configuration for one module alone."""
    return copy.copy(module.config)


def stacks_of(base: PreTrainedModel) -> tuple[Stack, ...]:
    """The description of this architecture: its row, or, if it has none, what looking at it gives.

    Raises:
        AnatomyError: lightpeft does not know it and finds no layers with attention in it.
    """
    model_type = base.config.model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    try:
        return discover(base)
    except AnatomyError as error:
        close = difflib.get_close_matches(model_type, FAMILIES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise AnatomyError(
            f"lightpeft does not know the architecture {model_type!r}.{hint} Known: {', '.join(FAMILIES)}. "
            f"It {error}. Adding one is a row in lightpeft/anatomy/families, see "
            "docs/adding-an-architecture.md."
        ) from error


def stock_of(base: PreTrainedModel, layer: Layer) -> Stock | None:
    """How the configuration says what is in the layers of this stack."""
    return next(stack.stock for stack in stacks_of(base) if stack.title == layer.title)


def _placed_layers(base: PreTrainedModel) -> Iterator[tuple[Stack, str, int]]:
    """Every layer with its stack, its name relative to `base`, and its number in the stack."""
    encoder = base.base_model
    prefix = "" if encoder is base else f"{base.base_model_prefix}."
    found = False
    for stack in stacks_of(base):
        names = [f"{prefix}{name}" for name in _expand(encoder, stack.layers)]
        for index, name in enumerate(names):
            yield stack, name, index
        found = found or bool(names)
    if not found:
        wanted = " or ".join(stack.layers for stack in stacks_of(base))
        raise AnatomyError(f"found no list of layers at {wanted} in {type(encoder).__name__}.")


def _expand(encoder: nn.Module, path: str) -> list[str]:
    """The entries of a list of layers; a `*` in its path stands for every entry of an outer list."""
    outer, star, inner = path.partition(".*.")
    try:
        entries = encoder.get_submodule(outer)
    except AttributeError:
        return []
    names = [f"{outer}.{index}" for index in range(len(list(entries.children())))]
    if star:
        return [f"{name}.{rest}" for name in names for rest in _expand(encoder.get_submodule(name), inner)]
    return names


def _find_layer(base: PreTrainedModel, stack: Stack, name: str, index: int, first: int) -> list[Layer]:
    attention = sayable(stack.stock, base.config, _find_attention(base, stack.attention, name))
    ffn = None if stack.ffn is None else sayable(stack.stock, base.config, _find_ffn(base, stack.ffn, name))
    cross = None
    if stack.cross is not None:
        cross = sayable(stack.stock, base.config, _find_attention(base, stack.cross, name))
    found = [units for units in (attention, ffn, cross) if units is not None]
    counted = sum(units.parameters(range(units.count)) for units in found)
    unsaid = why_not_left_out(stack.stock, base.config, index)
    fixed = _parameter_count(base.get_submodule(name)) - counted
    title = f"{stack.title} {index}"
    stays = stack.stays or _why_it_stays(attention)
    layers = [Layer(first, title, name, attention, ffn, fixed, stays, unsaid)]
    if cross is not None:
        layers.append(Layer(first + 1, f"{title}{CROSS}", name, cross, None, 0, stays, unsaid))
    return layers


def _parameter_count(layer: nn.Module) -> int:
    """Weights that a library packed count as the floats that they stand for."""
    packed = (linear for linear in layer.modules() if is_quantised(linear))
    return sum(p.numel() for p in base_parameters(layer).values() if not is_packed(p)) + sum(
        linear.in_features * linear.out_features for linear in packed
    )


def _why_it_stays(attention: Units) -> str | None:
    """A layer that makes what the layers above are given has to run."""
    makes = any(argument.returned_at is not None for argument in attention.head_inputs)
    return attention.fixed if makes else None


def _find_attention(base: PreTrainedModel, row: Attention, layer: str) -> Units:
    name = f"{layer}.{row.module}"
    module, out = base.get_submodule(name), linear_at(base, f"{layer}.{row.out}")
    size = getattr(module, row.head_size)
    heads = width(out, INPUTS) // size
    if heads * size != width(out, INPUTS):
        raise AnatomyError(f"{layer}.{row.out} is {width(out, INPUTS)} wide, no multiple of heads of {size}.")
    rows = row.layout(AttentionView(base, name, heads, size)) if heads else ()
    group = max((one.share for one in rows), default=1)
    units = Units(
        kind="heads",
        module=name,
        out=f"{layer}.{row.out}",
        count=heads,
        size=size,
        rows=rows,
        out_cost=size * width(out, OUTPUTS),
        group=group,
        splits_groups=group == 1 or any(one.share == 1 for one in rows),
        follow=tuple((k, v) for k, v in row.follow.items() if attribute_owner(module, k) is not None),
        head_inputs=row.head_inputs,
        fixed=row.fixed_if[1] if row.fixed_if and getattr(module, row.fixed_if[0], False) else None,
        returns=row.returns,
    )
    _check_counts(base, units)
    return units


def _check_counts(base: PreTrainedModel, units: Units) -> None:
    """Whether the module says of itself what its linears show."""
    module = base.get_submodule(units.module)
    for name, expected in units.attribute_values(range(units.count)).items():
        owner, attribute = attribute_owner(module, name) or (module, name)
        found = getattr(owner, attribute)
        if found != expected and units.count:
            raise AnatomyError(
                f"{units.module}: {name} says {found}, but its linears have {units.count} heads of "
                f"{units.size} in {units.groups} KV groups, so it should say {expected}."
            )


def _find_ffn(base: PreTrainedModel, row: FFN, layer: str) -> Units:
    out = linear_at(base, f"{layer}.{row.out}")
    neurons = width(out, INPUTS)
    present = [name for name in row.inputs if _exists(base.get_submodule(layer), name)]
    if not present:
        raise AnatomyError(f"found none of {', '.join(row.inputs)} in {layer}.")
    rows = []
    for name in present:
        linear = linear_at(base, f"{layer}.{name}")
        if width(linear, OUTPUTS) != row.fused * neurons:
            raise AnatomyError(
                f"{layer}.{name} has not {row.fused} times as many outputs as {layer}.{row.out} has inputs."
            )
        cost = row_parameters(linear)
        rows += [Rows(f"{layer}.{name}", "input", i * neurons, 1, 1, cost) for i in range(row.fused)]
    parent = row.out.rpartition(".")[0]
    return Units(
        kind="neurons",
        module=f"{layer}.{parent}".rstrip("."),
        out=f"{layer}.{row.out}",
        count=neurons,
        size=1,
        rows=tuple(rows),
        out_cost=width(out, OUTPUTS),
        # A Conv1D flattens its input and cannot tell the rows of an empty one.
        returns=None if isinstance(out, Conv1D) else 1,
    )


def _exists(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True
