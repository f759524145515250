"""A light model with its adapter merged: weights and configuration of the small model, and its plan."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_model
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from lightpeft.adapters import active_form
from lightpeft.anatomy import base_of, linear_at
from lightpeft.checkpoint.base import AUTO_CLASSES, quiet_transformers
from lightpeft.checkpoint.format import WEIGHTS, read_merged, write_merged
from lightpeft.checkpoint.hollow import build_hollow, opened, stand_in
from lightpeft.checkpoint.load import find_folder
from lightpeft.checkpoint.own import dtypes_of, restore_dtypes
from lightpeft.checkpoint.poison import refuse_marked_model
from lightpeft.checkpoint.push import push_model
from lightpeft.checkpoint.replaced import put_replaced
from lightpeft.checkpoint.ways_out import guard
from lightpeft.errors import AnatomyError, CheckpointError, PlanError
from lightpeft.files import read_json, write_json
from lightpeft.linears import OUTPUTS, width
from lightpeft.outputs import written_beside
from lightpeft.stock_names import MODEL_TYPE
from lightpeft.surgery import (
    CutRecord,
    fold_beside,
    narrow,
    record_of,
    reshape,
    shape_and_dtype,
    verify_discovered,
)
from lightpeft.wrapping import tied_parameters, unwrapped

logger = logging.getLogger(__name__)

_MODEL_TYPE, _DESCRIBED = "lightpeft_model_type", "lightpeft_described"

KEPT = ("base", "metrics", "task", "lightpeft_version")
"""What a light checkpoint says that a merged folder says, too."""

_MISFITS = (
    *(PlanError, AnatomyError, OSError, RuntimeError, ValueError, StrictDataclassError),
    *(KeyError, TypeError, AttributeError),
)
"""What a configuration and weights that do not go together end in."""


def save_merged(model: PeftModel, folder: Path, described: dict[str, Any]) -> PreTrainedModel:
    """Merge the adapter of a light model and write the small model into a new folder.

    Args:
        model: what `load` gave; it is merged in place.
        folder: made here.
        described: the JSON values of its `pruning.json` to keep: base, metrics, task.

    Returns:
        the merged model.

    Raises:
        CheckpointError: the model was not cut, or its form of PEFT cannot be merged.
    """
    record, merged = merge(model)
    narrow(merged)
    folder.mkdir(parents=True)
    _write_all(merged, folder, record, described)
    return merged


def _write_all(
    merged: PreTrainedModel, folder: Path, record: CutRecord, described: Mapping[str, Any]
) -> None:
    _write_config(merged, folder)
    with written_beside(folder / WEIGHTS) as beside:
        save_model(merged, str(beside), metadata={"format": "pt"})
    write_merged(folder, record, {**described, "dtypes": dtypes_of(merged)})


def merge(model: PeftModel) -> tuple[CutRecord, PreTrainedModel]:
    """Merge the adapter of a light model, in place, and what is kept beside its linears.

    Returns:
        the record of its cut, and the base.

    Raises:
        CheckpointError: the model was not cut, or its form of PEFT cannot be merged.
    """
    refuse_marked_model(model)
    record, form = record_of(model), active_form(model)
    if record is None:
        raise CheckpointError("the model was not cut; merge it with PEFT's merge_and_unload.")
    if form is not None and not form.merges:
        raise CheckpointError(
            f"{form.title} cannot be merged into weights, because it is not linear or has none of its own. "
            "The light checkpoint itself is the smallest form of this model; load it with lightpeft.load."
        )
    _require_untied(model, record.pairs.keys())
    if torch.finfo(model.dtype).bits <= 16:
        logger.warning(
            "merging into %s rounds a part of what was trained away, which the light checkpoint keeps in "
            "float32; measure it (lightpeft export --evaluate), or load the base in float32 and train so.",
            model.dtype,
        )
    merged: Any = model.merge_and_unload()
    fold_beside(merged)
    base: PreTrainedModel = merged
    return record, base


def _write_config(merged: PreTrainedModel, folder: Path) -> None:
    """The uncut model's configuration under the name of an architecture that lightpeft alone builds.

    Stock readers refuse it with that name in their message, instead of advising to load random weights.
    """
    values = json.loads(merged.config.to_json_string())
    renamed = {_MODEL_TYPE: values["model_type"], "model_type": MODEL_TYPE}
    write_json(folder / CONFIG_NAME, values | renamed)


def _read_config(folder: Path) -> PreTrainedConfig:
    """What `_write_config` wrote, or an earlier version, which left the architecture's name as it is."""
    values = read_json(folder / CONFIG_NAME)
    name = values.pop(_MODEL_TYPE, values.get("model_type"))
    config: PreTrainedConfig = CONFIG_MAPPING[name].from_dict(
        values | {"model_type": name}, name_or_path=str(folder)
    )
    return config


def _require_untied(model: PeftModel, with_pairs: Iterable[str]) -> None:
    """Merging into a head that is tied to the embedding would change the embedding too."""
    base = base_of(model)
    tied = tied_parameters(base)
    names = {name for name, one in base.named_modules() if isinstance(one, BaseTunerLayer)}
    for name in sorted(names.union(with_pairs)):
        if id(getattr(unwrapped(base.get_submodule(name)), "weight", None)) in tied:
            raise CheckpointError(
                f"{name} carries an adapter and its weights are tied to another module's, which merging "
                "would change. Use the light checkpoint itself (lightpeft.load), or leave the module out of "
                "target_modules."
            )


def load_merged(
    folder: str | Path,
    *,
    attn_implementation: str | None = None,
    revision: str | None = None,
    check_files: bool = True,
) -> PreTrainedModel:
    """Build a small model from what `save_merged` wrote (`lightpeft export --to merged`).

    Args:
        folder: a folder or a hub name.
        revision: of a hub name: the branch, tag or commit.
        check_files: off, files that were edited since they were saved are taken as they are.

    Raises:
        CheckpointError: a missing, damaged or truncated file, an unknown version, or a plan that does not fit
            the configuration.
    """
    directory = find_folder(folder, revision)
    record, described = read_merged(directory, check_files=check_files)
    try:
        model = _build(directory, record, described, attn_implementation)
        verify_discovered(model)
        reshape(model, record)
        _fill(model, directory / WEIGHTS)
        restore_dtypes(model, described.get("dtypes"), directory)
    except _MISFITS as error:
        raise CheckpointError(
            f"the weights in {directory} do not fit its configuration and plan: {error}"
        ) from error
    model.eval()
    own: Any = model
    own.save_pretrained = MethodType(_save_again, model)
    own.push_to_hub = MethodType(push_model, model)
    setattr(model, _DESCRIBED, {key: described.get(key) for key in KEPT})
    return model


def _build(
    directory: Path, record: CutRecord, described: Mapping[str, Any], attention: str | None
) -> PreTrainedModel:
    """The uncut model, with zeros that stand for its weights."""
    found = described.get("base")
    named: Mapping[str, Any] = found if isinstance(found, dict) else {}
    auto_class = AUTO_CLASSES.get(str(named.get("auto_class")))
    weights = {name: stand_in(*shape_and_dtype(digest)) for name, digest in record.base.items()}
    options = {} if attention is None else {"attn_implementation": attention}
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        config = _read_config(directory)
        kind = str(named.get("class"))
        built = auto_class and build_hollow(str(directory), auto_class, kind, config, weights, **options)
    if not built:
        raise CheckpointError(
            f"{directory} is of a base of class {named.get('class')!r} ({named.get('auto_class')!r}), which "
            "load_merged does not build."
        )
    model, _ = built
    put_replaced(model, named.get("replaced") or {})
    return model


def load_cut(folder: str | Path, auto_class: str, attn_implementation: str | None = None) -> PreTrainedModel:
    """`load_merged` for whoever asks by an auto class: the model, or for `AutoModel` what is below its head.

    Raises:
        CheckpointError: see `load_merged`; or the folder holds a model with another head.
    """
    directory = find_folder(folder)
    model = load_merged(directory, attn_implementation=attn_implementation)
    own = read_merged(directory, check_files=False)[1]["base"]["auto_class"]
    if auto_class == own:
        return model
    if auto_class != "AutoModel":
        raise CheckpointError(f"{folder} holds a model of {own}; {auto_class} would give it another head.")
    encoder: Any = model.base_model
    guard(encoder)
    below: PreTrainedModel = encoder
    return below


def _save_again(
    self: PreTrainedModel,
    save_directory: str | Path,
    is_main_process: bool = True,
    safe_serialization: bool = True,
    push_to_hub: bool = False,
    **_: Any,
) -> None:
    """`save_pretrained` of what `load_merged` gave: a merged folder; other files in it stay."""
    if push_to_hub or not safe_serialization:
        raise CheckpointError(
            "a cut model is saved as safetensors only, and pushed by push_to_hub(REPO): leave "
            "safe_serialization=False and push_to_hub=True out."
        )
    if any(isinstance(module, BaseTunerLayer) for module in self.modules()):
        raise CheckpointError(
            "the model carries an adapter, which a merged folder has no place for; merge it first "
            "(merge_and_unload), or save the PEFT model around it."
        )
    record = record_of(self)
    assert record is not None
    if is_main_process:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        _write_all(self, folder, record, getattr(self, _DESCRIBED))


def _fill(model: nn.Module, path: Path) -> None:
    """Give a model the tensors of a file, and biases to linears to which compensation gave some.

    Raises:
        CheckpointError: the file cannot be read, or has other tensors than the model.
    """
    wanted = model.state_dict(keep_vars=True)
    filled: set[int] = set()
    with opened(path) as file:
        for key in file.keys():  # noqa: SIM118
            value = file.get_tensor(key)
            target = wanted[key] if key in wanted else _new_bias(model, key, path)
            if target.shape != value.shape:
                raise CheckpointError(f"{key} has the shape {list(value.shape)}, not {list(target.shape)}.")
            target.data = value
            filled.add(id(target))
    missing = [key for key, target in wanted.items() if id(target) not in filled]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing[:3])}.")


def _new_bias(model: nn.Module, key: str, path: Path) -> nn.Parameter:
    linear = linear_at(model, key.removesuffix(".bias")) if key.endswith(".bias") else None
    if linear is None:
        raise CheckpointError(f"{path} has {key}, which the model has not.")
    linear.bias = nn.Parameter(linear.weight.new_zeros(width(linear, OUTPUTS)), requires_grad=False)
    return linear.bias
