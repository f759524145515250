"""How a base model is described in a checkpoint, and built again."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from lightpeft.anatomy import base_of
from lightpeft.checkpoint.poison import refuse_marked, refuse_marked_model
from lightpeft.errors import CheckpointError
from lightpeft.wrapping import name_without_peft

TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
"""What Trainers take from a tokenizer into the configuration of a model that is built already."""

_FIRST = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForImageClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModel",
)
"""A class may be in several mappings; these are asked before the rest."""

AUTO_CLASSES: dict[str, Any] = {
    name: getattr(modeling_auto, name)
    for name in (*_FIRST, *sorted(vars(modeling_auto)))
    if name.startswith("AutoModel") and hasattr(getattr(modeling_auto, name), "_model_mapping")
}

DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}

_BOOKKEEPING = frozenset({"_name_or_path", "dtype", "transformers_version", "use_cache"})
"""Keys of a configuration that do not decide what the model computes, and differ from place to place."""

_OF_TASKS = frozenset(
    {
        *TOKENS,
        *("architectures", "id2label", "label2id", "problem_type", "finetuning_task"),
        *("task_specific_params", "return_dict", "output_hidden_states", "output_attentions"),
    }
)
"""Keys that tasks on one base may have different values of."""


def describe_base(model: nn.Module) -> dict[str, Any]:
    """What is needed to build the base's class again, as JSON values."""
    base = base_of(model)
    return {
        "name_or_path": _lasting_name(base.config._name_or_path),
        "revision": None,
        "auto_class": _auto_class(base),
        "class": type(base).__name__,
        "dtype": str(next(base.parameters()).dtype),
        "config": config_values(base.config),
        "tokens": {key: getattr(base.config, key, None) for key in TOKENS},
        "padding": paddings(base),
    }


def paddings(base: nn.Module) -> dict[str, int]:
    """What modules remember of the padding token that they were built with, by names without PEFT.

    RoBERTa's positions count from it, also when a Trainer gives the configuration the tokenizer's later.
    """
    return {
        name_without_peft(name): module.padding_idx
        for name, module in base.named_modules()
        if not isinstance(module, nn.Embedding) and isinstance(vars(module).get("padding_idx"), int)
    }


def config_values(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration in full as JSON values, without what does not decide the model's function."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in _BOOKKEEPING}


def decisive_differences(wanted: Mapping[str, Any], config: PreTrainedConfig) -> list[str]:
    """Where `config` has other values than `wanted` that decide what the model computes, in words.

    Labels, and tokens that a head goes by, are given to a base in memory anew; dropout is of training alone.
    """
    found = config_values(config)
    return [
        f"{key} is {found.get(key)!r} instead of {value!r}"
        for key, value in wanted.items()
        if found.get(key) != value
        and key not in _OF_TASKS
        and "dropout" not in key
        and not key.endswith("_prob")
    ]


def described_config(described: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration that `describe_base` described.

    Raises:
        CheckpointError: it cannot be made, or is of an architecture that transformers does not know.
    """
    values = described.get("config")
    if not isinstance(values, dict) or values.get("model_type") not in CONFIG_MAPPING:
        found = values.get("model_type") if isinstance(values, dict) else type(values).__name__
        raise CheckpointError(
            f"the checkpoint's base has a configuration of {found!r}, unknown to transformers."
        )
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise CheckpointError(f"the configuration of the checkpoint's base is damaged: {error}") from error
    return config


def load_with_gaps(
    described: Mapping[str, Any], path: str | None = None, attention: str | None = None
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Load a base from the hub or a folder; weights come from there, everything else from the description.

    Args:
        path: takes the place of the folder or hub name that is described.

    Returns:
        the base, and the names of the parameters that the folder does not give in this shape: random ones.

    Raises:
        CheckpointError: the base cannot be found, is of a class that lightpeft does not load, or is marked
            as poisoned.
    """
    name = path or described.get("name_or_path")
    auto_class = _class_to_build(described)
    if not name:
        raise CheckpointError("the checkpoint does not name its base; pass base=.")
    options: dict[str, Any] = {
        "config": described_config(described),
        "dtype": DTYPES.get(str(described.get("dtype")), torch.float32),
        "ignore_mismatched_sizes": True,  # what does not fit comes from the checkpoint, or is refused
    }
    if attention is not None:
        options["attn_implementation"] = attention
    if path is None and not Path(name).is_dir() and described.get("revision"):
        options["revision"] = described["revision"]
    try:
        # Weights that are missing are drawn at random; the random numbers of the user's run stay as they are.
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            refuse_marked(own_config(name, options.get("revision")), f"the base {name!r}")
            base, info = auto_class.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"the base {name!r} cannot be loaded ({error}). Pass base= with its folder or hub name."
        ) from error
    assert isinstance(base, PreTrainedModel)
    refuse_marked_model(base)
    for key, value in (described.get("tokens") or {}).items():
        setattr(base.config, key, value)
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
    return base, frozenset(info["missing_keys"]) | mismatched


def own_config(name: str, revision: str | None) -> dict[str, Any]:
    """What the base's own `config.json` says."""
    values: dict[str, Any] = PreTrainedConfig.get_config_dict(name, revision=revision)[0]
    return values


def _class_to_build(described: Mapping[str, Any]) -> Any:
    name = described.get("auto_class")
    if name not in AUTO_CLASSES:
        raise CheckpointError(
            f"the checkpoint was made from a {described.get('class')!r}, which is of none of transformers' "
            f"auto classes ({name!r}), so load() cannot build it; build it yourself and pass it as base=."
        )
    return AUTO_CLASSES[name]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and its report of missing weights."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def _lasting_name(name: str) -> str:
    """A folder by its absolute path, so that it is found from elsewhere too; a hub name as it is."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def _auto_class(base: PreTrainedModel) -> str | None:
    for name, auto_class in AUTO_CLASSES.items():
        mapping = auto_class._model_mapping
        if type(base.config) not in mapping:
            continue
        found = mapping[type(base.config)]
        if type(base) in (found if isinstance(found, tuple | list) else (found,)):
            return name
    return None
