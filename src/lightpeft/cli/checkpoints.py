"""Opening a checkpoint for the verbs that use one."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightpeft.checkpoint import (
    MERGED,
    find_folder,
    is_light_checkpoint,
    kind_of,
    load,
    load_merged,
    read_merged,
    read_record,
)
from lightpeft.errors import CheckpointError
from lightpeft.runs import require_folder, resolve_model
from lightpeft.tasks import TaskRecord


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
    if kind_of(directory) == MERGED:
        return load_merged(directory), tokenizer, task
    name = base or (described.get("base") or {}).get("name_or_path")
    return load(directory, None if name is None else resolve_model(name)), tokenizer, task


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
    described = read_merged(directory)[1] if kind_of(directory) == MERGED else read_record(directory)[1]
    return described, TaskRecord.read(described.get("task"), directory)


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
