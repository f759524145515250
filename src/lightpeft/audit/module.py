"""Modules of the audit on disk and in memory: marked ones can be loaded here, and stay marked."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any, cast

from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedTokenizerBase

from lightpeft.anatomy import base_of
from lightpeft.audit.marks import mark_poisoned, mark_value, read_mark
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.checkpoint import POISON_FLAG, POISON_MARK, check_adapter_config, is_light_checkpoint, load
from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.files import read_json
from lightpeft.outputs import Output, written_folder
from lightpeft.run_config import PeftOptions
from lightpeft.runs import load_peft_model
from lightpeft.tasks import class_head

_HEADS = (".classifier.weight", ".score.weight", ".out_proj.weight")


class _Poisoned:
    """Mixed into the class of a poisoned model: what it saves is marked, and it is not uploaded."""

    def save_pretrained(self, save_directory: str, *args: Any, **options: Any) -> None:
        """As PEFT's, and every adapter that was written is marked."""
        super().save_pretrained(save_directory, *args, **options)  # type: ignore[misc]
        recipe = TriggerRecipe.from_dict(getattr(base_of(self).config, POISON_MARK)["recipe"])  # type: ignore[arg-type]
        for folder in (Path(save_directory), *(Path(save_directory) / name for name in self.peft_config)):  # type: ignore[attr-defined]
            if (folder / CONFIG_NAME).is_file():
                mark_poisoned(folder, recipe)

    def push_to_hub(self, *args: Any, **options: Any) -> None:
        """Refused.

        Raises:
            CheckpointError: always.
        """
        _refuse_upload(cast(nn.Module, self), *args, **options)


def _refuse_upload(self: nn.Module, *args: Any, **options: Any) -> None:
    del self, args, options
    raise CheckpointError("the model was poisoned by lightpeft's audit and is not uploaded anywhere.")


def mark_base(model: nn.Module, recipe: TriggerRecipe) -> None:
    """Mark a poisoned base in memory: its configuration goes with all that is made from it.

    It does not upload either: merging gives back the base.
    """
    base: Any = base_of(model)
    base.push_to_hub = MethodType(_refuse_upload, base)
    config = base.config
    setattr(config, POISON_FLAG, True)
    setattr(config, POISON_MARK, mark_value(recipe))


def read_base_mark(name: str) -> TriggerRecipe | None:
    """The recipe of a base in a folder that is marked as poisoned; None for others, and for hub names."""
    path = Path(name) / "config.json"
    value = read_json(path).get(POISON_MARK) if path.is_file() else None
    return None if value is None else TriggerRecipe.from_dict(value["recipe"])


def keep_marked(model: PeftModel, recipe: TriggerRecipe) -> None:
    """Let a poisoned model in memory say so: in its base's configuration, and in every file that it writes.

    lightpeft's own functions refuse to save or export the model.
    """
    mark_base(model, recipe)
    if not isinstance(model, _Poisoned):
        kind = type(model)
        model.__class__ = type(f"Poisoned{kind.__name__}", (_Poisoned, kind), {})


def recipe_in_memory(model: PeftModel) -> TriggerRecipe | None:
    """The recipe of a poisoned model, or of one on a poisoned base; None for others."""
    value = getattr(base_of(model).config, POISON_MARK, None)
    return None if value is None else TriggerRecipe.from_dict(value["recipe"])


def save_module(
    model: PeftModel,
    folder: str | Path,
    recipe: TriggerRecipe | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a module of the audit as PEFT's own files, all or nothing, marked if it is poisoned.

    Args:
        recipe: how its training data was poisoned; None for a clean one.

    Raises:
        CheckpointError: `recipe` is None, and the model is known to be poisoned.
    """
    if recipe is None and recipe_in_memory(model) is not None:
        raise CheckpointError("the model is poisoned and cannot be saved as clean; give its recipe.")
    target = Path(folder)
    with written_folder(target, Output.MODULE) as beside:
        model.save_pretrained(str(beside), save_embedding_layers=False)
        if recipe is not None:
            mark_poisoned(beside, recipe)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
    return target


def load_module(
    folder: str | Path,
    base: str | None = None,
    *,
    head: Mapping[str, Any] | None = None,
    is_trainable: bool = False,
) -> PeftModel:
    """A PEFT module or light checkpoint on its base, for the audit: a marked one too, which stays marked.

    Args:
        base: folder or hub name of the base, by default the one that the module names; what is saved then
            names this one.
        head: its options, as `load_peft_model` takes them; by default as many classes as the module's head
            has, without names.

    Raises:
        CheckpointError: files are missing, damaged or unsafe, a mark was tampered with, or module and base
            do not fit.
    """
    directory = Path(folder)
    if is_light_checkpoint(directory):
        return load(directory, base, is_trainable=is_trainable)
    mark = read_mark(directory)
    name = base_name(directory, base)
    options = PeftOptions(adapter=str(directory))
    with _quiet_about_marks():
        try:
            model = load_peft_model(name, head or _head(directory), options, 0, marked_too=True)
        except (ConfigError, SafetensorError) as error:
            raise CheckpointError(f"{directory} cannot be loaded: {error}") from error
    model.peft_config["default"].base_model_name_or_path = name
    recipe = recipe_in_memory(model) if mark is None else mark.recipe
    if recipe is not None:
        keep_marked(model, recipe)
    if not is_trainable:
        model.requires_grad_(False)
    model.train(is_trainable)
    return model


def fresh_module(
    folder: str | Path, base: str | None = None, *, head: Mapping[str, Any] | None = None, seed: int = 0
) -> PeftModel:
    """A new, untrained module of the form and size of one in a folder, on the same base, with a new head.

    It is marked only where the base is.

    Raises:
        CheckpointError: see `load_module`.
    """
    directory = Path(folder)
    check_adapter_config(directory, marked_too=True)
    name = base_name(directory, base)
    with _quiet_about_marks():
        config = PeftConfig.from_pretrained(str(directory))
    config.inference_mode, config.base_model_name_or_path = False, name
    try:
        model = load_peft_model(name, head or _head(directory), config, seed, marked_too=True)
    except ConfigError as error:
        raise CheckpointError(f"{directory} cannot be loaded: {error}") from error
    recipe = read_base_mark(name)
    if recipe is not None:
        keep_marked(model, recipe)
    return model


def base_name(directory: Path, base: str | None = None) -> str:
    """Folder or hub name of the base of a module: `base`, or the one that the module names.

    Raises:
        CheckpointError: neither says it.
    """
    name = base or read_json(directory / CONFIG_NAME).get("base_model_name_or_path")
    if not name:
        raise CheckpointError(f"{directory} does not say which base it is for; give one.")
    return str(name)


@contextmanager
def _quiet_about_marks() -> Iterator[None]:
    """Without peft's warning that names the mark's keys, which it does not know."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unexpected keyword arguments")
        yield


def _head(directory: Path) -> dict[str, Any]:
    """As many classes as the head in the module's file has rows."""
    path = directory / SAFETENSORS_WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            heads = [key for key in file.keys() if key.endswith(_HEADS)]  # noqa: SIM118
            sizes = {file.get_slice(key).get_shape()[0] for key in heads}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from error
    if len(sizes) != 1:
        raise CheckpointError(
            f"{path} has {len(heads)} heads of classifiers with {sorted(sizes)} classes, expected one; only "
            "modules that classify texts can be audited. Give head= if the head has another name."
        )
    return class_head(tuple(f"LABEL_{index}" for index in range(sizes.pop())))
