"""Modules of a base that somebody put in place of its class's own: a new head, say. Told, and built again."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations
from transformers.pytorch_utils import Conv1D

from lightpeft.errors import CheckpointError
from lightpeft.linears import is_quantised
from lightpeft.surgery import SkippedAttention, shape_and_dtype
from lightpeft.wrapping import unwrapped

Structure = dict[str, Any]
"""A module as JSON values: its kind, and what its constructor takes."""

_PLAIN: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Identity": (nn.Identity, ()),
    "Dropout": (nn.Dropout, ("p",)),
    "Tanh": (nn.Tanh, ()),
    "ReLU": (nn.ReLU, ()),
    "GELU": (nn.GELU, ("approximate",)),
    "SiLU": (nn.SiLU, ()),
    "Sigmoid": (nn.Sigmoid, ()),
    "Softplus": (nn.Softplus, ("beta", "threshold")),
    "LeakyReLU": (nn.LeakyReLU, ("negative_slope",)),
    "ELU": (nn.ELU, ("alpha",)),
    "Embedding": (nn.Embedding, ("num_embeddings", "embedding_dim", "padding_idx")),
}
_WITH_BIAS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Linear": (nn.Linear, ("in_features", "out_features")),
    "LayerNorm": (nn.LayerNorm, ("normalized_shape", "eps")),
}
_SEQUENTIAL = "Sequential"


def describe_replaced(
    base: nn.Module, fresh: nn.Module, wanted: Mapping[str, str]
) -> dict[str, Structure | None]:
    """The modules of `base` that are of another kind or shape than in `fresh`, which its class built.

    Args:
        wanted: digests of `base` before it was cut, whose shapes count.

    Returns:
        By name; None for one that consists of more than torch's plain layers.
    """
    return dict(_replaced(base, fresh, "", _shapes(wanted)))


def put_replaced(base: nn.Module, replaced: Mapping[str, Any]) -> frozenset[str]:
    """Put the modules that `describe_replaced` described into a base, with random weights.

    Returns:
        their names.

    Raises:
        CheckpointError: one that could not be described, or a description that was damaged.
    """
    for name, structure in replaced.items():
        if structure is None:
            raise CheckpointError(
                f"the module {name} of the base was replaced by one that load() cannot build; build the base "
                "with it yourself and pass it as base=."
            )
        try:
            new = _build(structure)
            base.set_submodule(name, new.train(base.training))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"the description of the base's module {name} is damaged: {error}"
            ) from error
    return frozenset(replaced)


def _replaced(
    module: nn.Module, fresh: nn.Module, path: str, shapes: Mapping[str, list[int]]
) -> Iterator[tuple[str, Structure | None]]:
    module = _original(module)
    if is_quantised(module) and isinstance(fresh, nn.Linear | Conv1D):
        return
    other_kind = _kind(module) is not _kind(fresh) and not isinstance(module, SkippedAttention)
    if path and (other_kind or not _same_shapes(fresh, path, shapes)):
        yield path, _describe(module)
        return
    children = dict(module.named_children())
    for name, child in fresh.named_children():
        if name in children:
            yield from _replaced(children[name], child, f"{path}.{name}" if path else name, shapes)


def _original(module: nn.Module) -> nn.Module:
    """The base's own module under what PEFT and lightpeft put around or in place of it."""
    module = unwrapped(module)
    inner = getattr(module, "original_module", None)
    return _original(inner) if isinstance(inner, nn.Module) else module


def _kind(module: nn.Module) -> type[nn.Module]:
    """A module with a parametrized weight (weight norm, say) has a class of its own."""
    return type_before_parametrizations(module)


def _same_shapes(fresh: nn.Module, path: str, shapes: Mapping[str, list[int]]) -> bool:
    own = {f"{path}.{name}": list(value.shape) for name, value in fresh.named_parameters(recurse=False)}
    return all(shapes.get(name, shape) == shape for name, shape in own.items())


def _shapes(digests: Mapping[str, str]) -> dict[str, list[int]]:
    return {name: shape_and_dtype(digest)[0] for name, digest in digests.items()}


def _describe(module: nn.Module) -> Structure | None:
    name = type(module).__name__
    if type(module) is nn.Sequential:
        inner = {child_name: _describe(child) for child_name, child in module.named_children()}
        return None if None in inner.values() else {"kind": _SEQUENTIAL, "of": inner}
    for table in (_PLAIN, _WITH_BIAS):
        if name in table and type(module) is table[name][0]:
            options = {key: getattr(module, key) for key in table[name][1]}
            if table is _WITH_BIAS:
                options["bias"] = getattr(module, "bias", None) is not None
            return {"kind": name, "options": options}
    return None


def _build(structure: Structure) -> nn.Module:
    if structure["kind"] == _SEQUENTIAL:
        return nn.Sequential(OrderedDict((name, _build(inner)) for name, inner in structure["of"].items()))
    make: Callable[..., nn.Module] = (_PLAIN | _WITH_BIAS)[structure["kind"]][0]
    with torch.random.fork_rng(devices=[]):
        return make(**structure["options"])
