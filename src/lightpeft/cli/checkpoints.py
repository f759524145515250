"""Opening a checkpoint for the verbs that use one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightpeft.checkpoint import (
    AUTO_CLASSES,
    MERGED,
    find_folder,
    is_light_checkpoint,
    kind_of,
    load,
    load_merged,
    read_merged,
    read_record,
)
from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.runs import outline, quantization_config, require_folder, resolve_model
from lightpeft.tasks import TaskRecord

CAUSAL = "AutoModelForCausalLM"


def open_checkpoint(
    folder: str, base: str | None
) -> tuple[PeftModel | PreTrainedModel, PreTrainedTokenizerBase, TaskRecord]:
    """Model, tokenizer and task record of a light or merged checkpoint, or of a run's folder that holds one.

    Raises:
        CheckpointError: it cannot be loaded, or has no tokenizer or task record.
    """
    if base is not None:
        require_folder(base)
    directory = light_folder(folder)
    described, task = recorded(directory)
    tokenizer = open_tokenizer(directory)
    return open_model(directory, described, base), tokenizer, task


def open_model(
    directory: Path, described: Mapping[str, Any], base: str | None
) -> PeftModel | PreTrainedModel:
    """The model of a light or merged checkpoint.

    Args:
        described: what it says of its base.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    if kind_of(directory) == MERGED:
        return load_merged(directory)
    of_base = described.get("base") or {}
    name = base or of_base.get("name_or_path")
    path = None if name is None else resolve_model(name)
    quantization = (described.get("task") or {}).get("quantization")
    if quantization is None or path is None:
        return load(directory, path)
    shape = outline(path, AUTO_CLASSES.get(str(of_base.get("auto_class")), AutoModel))
    return load(directory, path, quantization_config=quantization_config(quantization, shape))


def find_language_model(folder: str, base: str | None) -> tuple[Path, dict[str, Any]]:
    """The local folder of a causal language model's checkpoint, and what it says of its base.

    No weights of the model are read, and the checkpoint need not know a task.

    Raises:
        ConfigError: there is no such folder, or the model is another one.
        CheckpointError: there is no checkpoint in it, or it is damaged.
    """
    if base is not None:
        require_folder(base)
    directory = light_folder(folder)
    described = description(directory)
    found = (described.get("base") or {}).get("auto_class")
    if found != CAUSAL:
        raise ConfigError(
            f"{directory} is of a base of class {found!r}; the harness's tasks are for causal language "
            f"models ({CAUSAL}). Without --harness it is measured on its own task."
        )
    return directory, described


def light_folder(folder: str) -> Path:
    """The local folder of a checkpoint; of a run's folder, the light checkpoint in it.

    Raises:
        ConfigError: there is no such folder.
        CheckpointError: there is no checkpoint in it.
    """
    require_folder(folder, "checkpoint")
    inner = Path(folder) / "light"
    return inner if is_light_checkpoint(inner) else find_folder(folder)


def recorded(directory: Path) -> tuple[dict[str, Any], TaskRecord]:
    """What a checkpoint says of its base and metrics, and its task.

    Raises:
        CheckpointError: it is damaged, or does not say which task it was trained on.
    """
    described = description(directory)
    return described, TaskRecord.read(described.get("task"), directory)


def description(directory: Path) -> dict[str, Any]:
    """What a checkpoint says of its base, its metrics and perhaps its task.

    Raises:
        CheckpointError: it is damaged.
    """
    return read_merged(directory)[1] if kind_of(directory) == MERGED else read_record(directory)[1]


def open_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(directory))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory} has no usable tokenizer: {' '.join(str(error).split())}"
        ) from error
    return tokenizer
