"""What decides the outcome of a training run, as JSON values: two runs with the same go the same way."""

import hashlib
import json
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainingArguments

from lightpeft.training.random_state import same_random_state

_DECIDING = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps"),
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm"),
    *("weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "seed", "data_seed"),
    *("bf16", "fp16", "label_smoothing_factor", "train_sampling_strategy", "neftune_noise_alpha"),
)
_NAMES_OF_PLACES = {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"}
_SAMPLED, _DIGITS = 32, 16


def run_settings(
    args: TrainingArguments, model: nn.Module, data: object, light: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The settings of a run that is about to begin, of its uncut model.

    Args:
        light: the light configuration; None for plain PEFT.
    """
    return {
        "training": {name: _plain(getattr(args, name, None)) for name in _DECIDING}
        | ({"processes": args.world_size} if args.world_size > 1 else {}),
        "light": None if light is None else _plain(light),
        "peft": _peft(model),
        "base": _base(model),
        "data": data_digest(data),
    }


def data_digest(data: object) -> str | None:
    """A digest of a data set: of all rows of one from `datasets`, else of its length and some of its rows.

    None for data without a length. Rows that are another each time they are read do not count.
    """
    digest = hashlib.sha256(type(data).__name__.encode())
    if isinstance(data, datasets.Dataset):
        for table in data.with_format("arrow").iter(1000):
            _add_table(digest, table)
        return digest.hexdigest()[:_DIGITS]
    if not isinstance(data, Sized) or not hasattr(data, "__getitem__"):
        return None
    digest.update(str(len(data)).encode())
    with same_random_state():  # reading rows may draw from it
        for index in np.linspace(0, max(len(data) - 1, 0), min(_SAMPLED, len(data))).astype(int).tolist():
            first, again = _read(data, index), _read(data, index)
            digest.update(first if first == again else b"random")
    return digest.hexdigest()[:_DIGITS]


def _add_table(digest: Any, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
        stream.write_table(table.replace_schema_metadata(None).combine_chunks())
    digest.update(sink.getvalue())


def _read(data: Any, index: int) -> bytes:
    return json.dumps(_plain(data[index]), sort_keys=True).encode()


def _plain(value: Any) -> Any:
    """As JSON values; of what JSON does not know, its text."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(one) for one in value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if type(value) in (bool, int, float, str) or value is None:
        return value
    return str(getattr(value, "value", value))


def _peft(model: nn.Module) -> dict[str, Any]:
    if not isinstance(model, PeftModel):
        return {}
    return {
        name: {key: _plain(value) for key, value in config.to_dict().items() if key not in _NAMES_OF_PLACES}
        for name, config in model.peft_config.items()
    }


def _base(model: nn.Module) -> str:
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = getattr(base, "config", None)
    return Path(str(getattr(config, "_name_or_path", ""))).name or type(base).__name__
