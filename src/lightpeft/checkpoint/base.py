"""How a base model is described in a checkpoint, and built again."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from lightpeft.anatomy import base_of
from lightpeft.checkpoint.hollow import Place, Places, build_hollow, opened, random_names
from lightpeft.checkpoint.poison import refuse_marked, refuse_marked_model
from lightpeft.errors import CheckpointError
from lightpeft.files import read_json
from lightpeft.linears import is_quantised
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

_FAILURES = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError)
"""What a base that is missing, damaged or of another kind makes transformers raise."""

_BOOKKEEPING = frozenset(
    {"_name_or_path", "dtype", "transformers_version", "use_cache", "quantization_config"}
)
"""Keys of a configuration that do not decide what the model computes, and differ from place to place.

A light checkpoint is of the values that a base was quantised from; how is said when it is loaded.
"""

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
        "dtype": str(_dtype(base)),
        "config": config_values(base.config),
        "tokens": {key: getattr(base.config, key, None) for key in TOKENS},
        "padding": paddings(base),
    }


def _dtype(base: PreTrainedModel) -> torch.dtype:
    """Of its weights; of a quantised base, where others may have been widened, of those it was made from."""
    named = getattr(base.config, "dtype", None)
    if isinstance(named, torch.dtype) and any(is_quantised(module) for module in base.modules()):
        return named
    return next(base.parameters()).dtype


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
    name, revision = _named(described, path)
    auto_class = _class_to_build(described)
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        # Weights that are missing are drawn at random; the random numbers of the user's run stay as they are.
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            refuse_marked(own_config(name, revision), f"the base {name!r}")
            base, info = auto_class.from_pretrained(
                name,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # what does not fit comes from the checkpoint, or is refused
                **_build_options(described, attention),
                **options,
            )
    except _FAILURES as error:
        raise CheckpointError(
            f"the base {name!r} cannot be loaded ({error}). Pass base= with its folder or hub name."
        ) from error
    assert isinstance(base, PreTrainedModel)
    _finish(base, described)
    return base, random_names(info)


def hollow_with_gaps(
    described: Mapping[str, Any], path: str | None = None, attention: str | None = None
) -> tuple[PreTrainedModel, frozenset[str], Places] | None:
    """`load_with_gaps` without reading the weights, and where they are.

    None where they have to be read at once: they are not in safetensors, or transformers makes others of them
    (joins, converts, keeps some in another dtype); and where the base cannot be loaded, as `load_with_gaps`
    will say.

    Raises:
        CheckpointError: see `load_with_gaps`.
    """
    name, revision = _named(described, path)
    auto_class, options = _class_to_build(described), _build_options(described, attention)
    config = options["config"]
    if getattr(config, "quantization_config", None) or type(config).extra_files:
        return None
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            refuse_marked(own_config(name, revision), f"the base {name!r}")
            places = Places()
            weights = dict(_weights(name, revision, places, options["dtype"]))
            built = build_hollow(name, auto_class, str(described.get("class")), weights=weights, **options)
            if not weights or built is None:
                return None
            base, gaps = built
            if base.can_generate():
                base.generation_config = _generation_config(name, revision)
    except _FAILURES:
        return None
    _finish(base, described)
    there = base.state_dict(keep_vars=True)
    odd = [key for key, one in there.items() if one.is_floating_point() and places.of(one) is None]
    return (base, gaps, places) if gaps.issuperset(odd) else None


def _weights(
    name: str, revision: str | None, places: Places, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """By the names in a base's safetensors: a zero of `dtype` for every weight, and other tensors."""
    for path in _weight_files(name, revision):
        with opened(path) as file:
            for key in file.keys():  # noqa: SIM118
                entry = file.get_slice(key)
                if entry.get_dtype().startswith(("F", "BF")):
                    yield key, places.note(Place(path, key, through=dtype), entry.get_shape(), dtype)
                else:
                    yield key, file.get_tensor(key)


def _weight_files(name: str, revision: str | None) -> list[Path]:
    """The safetensors of a base; none if it has an adapter, too, or weights in another form."""

    def find(file: str) -> Path | None:
        found = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    if find(ADAPTER_CONFIG) is not None:
        return []
    if (whole := find(SAFE_WEIGHTS_NAME)) is not None:
        return [whole]
    if (index := find(SAFE_WEIGHTS_INDEX_NAME)) is None:
        return []
    shards = [find(shard) for shard in sorted(set(read_json(index)["weight_map"].values()))]
    return [shard for shard in shards if shard is not None] if None not in shards else []


def _generation_config(name: str, revision: str | None) -> GenerationConfig:
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        return GenerationConfig.from_pretrained(name, **options)
    except OSError:  # there is none: from what the configuration says of it
        return GenerationConfig.from_pretrained(
            name, config_file_name=CONFIG_NAME, _from_model_config=True, **options
        )


def _named(described: Mapping[str, Any], path: str | None) -> tuple[str, str | None]:
    """The base's folder or hub name, and of the latter the revision that is described."""
    name = path or described.get("name_or_path")
    if not name:
        raise CheckpointError("the checkpoint does not name its base; pass base=.")
    is_as_described = path is None and not Path(name).is_dir()
    return str(name), (described.get("revision") or None) if is_as_described else None


def _build_options(described: Mapping[str, Any], attention: str | None) -> dict[str, Any]:
    options = {
        "config": described_config(described),
        "dtype": DTYPES.get(str(described.get("dtype")), torch.float32),
    }
    return options if attention is None else options | {"attn_implementation": attention}


def _finish(base: PreTrainedModel, described: Mapping[str, Any]) -> None:
    refuse_marked_model(base)
    for key, value in (described.get("tokens") or {}).items():
        setattr(base.config, key, value)


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
