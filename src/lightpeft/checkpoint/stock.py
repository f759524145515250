"""An evenly cut model as an ordinary checkpoint of its architecture, which needs no lightpeft."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lightpeft.anatomy import (
    Layer,
    Said,
    Units,
    base_of,
    find_anatomy,
    linear_at,
    stacks_of,
    stock_config,
)
from lightpeft.checkpoint.base import AUTO_CLASSES, describe_base, quiet_transformers
from lightpeft.checkpoint.merged import merge
from lightpeft.checkpoint.proof import outputs_of, require_close
from lightpeft.errors import AnatomyError, CheckpointError
from lightpeft.plan import LayerPlan, Plan
from lightpeft.surgery import TOLERANCES, as_computed, narrowest_dtype, padded_batch, record_of

logger = logging.getLogger(__name__)

_INSTEAD = (
    "Cut evenly in a new run (--budget.uniform true), or write the small model with its plan (--to merged)."
)


def save_stock(model: PeftModel, folder: Path) -> PreTrainedModel:
    """Merge the adapter of a light model and write the small model as an ordinary one of its architecture.

    What was written is loaded by transformers alone, and has to compute what the light model does.

    Args:
        model: what `load` gave; it is merged in place.
        folder: is there already.

    Returns:
        the ordinary model, as it was loaded.

    Raises:
        CheckpointError: the model was not cut or cannot be merged, no configuration can say what was cut, or
            what was written computes something else.
    """
    name = describe_base(model)["auto_class"]
    if name not in AUTO_CLASSES:
        raise CheckpointError(
            f"the base is a {type(base_of(model)).__name__}, which none of transformers' auto classes "
            "builds, so no ordinary checkpoint can be written of it. Use --to merged."
        )
    record = record_of(model)
    if record is not None:  # else `merge` refuses it
        _config_of(base_of(model), record.plan)  # before anything is merged
    batch = padded_batch(model)
    expected = outputs_of(model, batch, as_computed(base_of(model)))
    tolerance = TOLERANCES[narrowest_dtype(base_of(model))]
    attention = base_of(model).config._attn_implementation
    record, merged = merge(model)
    with quiet_transformers():
        _ordinary(merged, record.plan, name).save_pretrained(folder)
        loaded, info = AUTO_CLASSES[name].from_pretrained(
            folder, attn_implementation=attention, output_loading_info=True
        )
    odd = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if odd:
        raise CheckpointError(
            f"transformers does not find its tensors in what was written: {odd[0]}. {_INSTEAD}"
        )
    small: PreTrainedModel = loaded.to(merged.device).eval()
    require_close(
        expected, outputs_of(small, batch, as_computed(small)), tolerance, "the ordinary checkpoint"
    )
    return small


def _config_of(base: PreTrainedModel, plan: Plan) -> PreTrainedConfig:
    """That of an ordinary model like this cut one.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return stock_config(base, stacks_of(base), _said(base, plan))
    except AnatomyError as error:
        raise CheckpointError(f"{error} {_INSTEAD}") from error


def _ordinary(merged: PreTrainedModel, plan: Plan, auto_class: str) -> PreTrainedModel:
    """An ordinary model with the weights of a merged one."""
    config = _config_of(merged, plan)
    with torch.random.fork_rng(devices=[]):
        small: PreTrainedModel = AUTO_CLASSES[auto_class].from_config(config)
    small.load_state_dict(_fitted(_renumbered(merged, plan), small), assign=True)
    small.tie_weights()
    if small.can_generate():
        small.generation_config = merged.generation_config
    small.eval()
    return small


def _said(base: PreTrainedModel, plan: Plan) -> Said:
    """What the configuration of an ordinary model has to say.

    Raises:
        CheckpointError: it would have to say several things at once, or what it has no words for.
    """
    wishes, layers = _Wishes(), _kept_layers(base, plan)
    biased: set[tuple[str, str]] = set()
    for layer, wanted in zip(find_anatomy(base).layers, plan.layers, strict=True):
        if wanted.skipped:
            continue
        for units, is_cut in _with_cut(layer, wanted):
            wishes.add(layer, units, is_cut)
            if linear_at(base, units.out).bias is not None:
                biased.add((layer.title, units.kind))
    return Said(wishes.counts(), layers, frozenset(biased))


def _kept_layers(base: PreTrainedModel, plan: Plan) -> dict[str, list[int]]:
    """Per title of a stack that lost layers the numbers of those that stay."""
    stacks: dict[str, list[bool]] = {}
    for layer, wanted in zip(find_anatomy(base).layers, plan.layers, strict=True):
        if wanted.is_layer:
            stacks.setdefault(layer.title, []).append(wanted.skipped)
    return {
        title: [number for number, is_skipped in enumerate(skips) if not is_skipped]
        for title, skips in stacks.items()
        if any(skips)
    }


def _with_cut(layer: Layer, wanted: LayerPlan) -> Iterator[tuple[Units, bool]]:
    """The units that are left in a layer, and whether any are gone."""
    for units, before in ((layer.attention, wanted.head_count), (layer.ffn, wanted.neuron_count)):
        if units is not None:
            yield units, units.count < before


class _Wishes:
    """What layers want the configuration to say."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[int, str]] = {}
        """Per key: each value, and the first layer that wants it."""
        self._changed: set[str] = set()

    def add(self, layer: Layer, units: Units, is_cut: bool) -> None:
        """What these units want.

        Raises:
            CheckpointError: the configuration has no words for it.
        """
        if is_cut and (units.unsaid is not None or not units.count):
            lost = f"{layer.name} has lost {'' if units.count else 'all '}{units.kind}"
            why = "" if units.unsaid is None else f": {units.unsaid}"
            raise CheckpointError(f"{lost}, which no checkpoint of transformers can have{why}. {_INSTEAD}")
        for key, count in units.key_values(range(units.count)).items():
            self._counts.setdefault(key, {}).setdefault(count, layer.name)
            self._changed |= {key} if is_cut else set()

    def counts(self) -> dict[str, int]:
        """The keys of what was cut, and their values.

        Raises:
            CheckpointError: a key would need several.
        """
        for key in sorted(self._changed):
            if len(self._counts[key]) > 1:
                (one, where), (two, there), *_ = self._counts[key].items()
                raise CheckpointError(
                    f"{where} and {there} would need a {key} of {one} and {two}, but a configuration of "
                    f"transformers has one for all layers. {_INSTEAD}"
                )
        return {key: next(iter(self._counts[key])) for key in self._changed}


def _renumbered(merged: PreTrainedModel, plan: Plan) -> dict[str, Tensor]:
    """The tensors of the layers that run, under the numbers that they have without the others."""
    skipped = {layer.index for layer in plan.layers if layer.skipped}
    anatomy = find_anatomy(merged)
    gone = {layer.module for layer in anatomy.layers if layer.index in skipped}
    names: dict[str, str | None] = {}
    for modules in anatomy.stacks:
        kept = [module for module in modules if module not in gone]
        if len(kept) < len(modules):
            names |= dict.fromkeys(gone.intersection(modules))
            names |= dict(zip(kept, modules, strict=False))
    state: dict[str, Tensor] = {}
    for key, value in merged.state_dict().items():
        old = next((name for name in names if key.startswith(f"{name}.")), None)
        new = key if old is None else names[old] and f"{names[old]}{key.removeprefix(old)}"
        if new is not None:
            state[new] = value
    return state


def _fitted(state: dict[str, Tensor], small: PreTrainedModel) -> dict[str, Tensor]:
    """With zeros for biases that the configuration brings along.

    Raises:
        CheckpointError: the ordinary model has other tensors.
    """
    wanted: dict[str, Any] = small.state_dict()
    odd = [name for name in state if name not in wanted]
    odd += [name for name in wanted if name not in state and not name.endswith(".bias")]
    odd += [name for name in state if name in wanted and state[name].shape != wanted[name].shape]
    if odd:
        hint = ""
        if odd[0].endswith(".bias"):
            hint = " Compensation puts such biases there: --surgery.compensate false leaves them out."
        raise CheckpointError(
            f"{odd[0]} of the cut model has no place in an ordinary {type(small).__name__} "
            f"({len(odd)} tensors in all).{hint} {_INSTEAD}"
        )
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    return {
        name: state[name] if name in state else torch.zeros_like(value, dtype=dtype)
        for name, value in wanted.items()
    }
