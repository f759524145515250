"""Opening a light checkpoint for the verbs that use one."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightpeft.checkpoint import find_folder, is_light_checkpoint, load, read_record
from lightpeft.errors import CheckpointError
from lightpeft.runs import resolve_model


def open_checkpoint(
    folder: str, base: str | None
) -> tuple[PeftModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Model, tokenizer and task record of a light checkpoint, or of a run's folder that holds one.

    Raises:
        CheckpointError: it cannot be loaded, or has no tokenizer or task record.
    """
    inner = Path(folder) / "light"
    directory = inner if is_light_checkpoint(inner) else find_folder(folder)
    _, described, _ = read_record(directory)
    task = described.get("task")
    if not isinstance(task, dict) or "name" not in task:
        raise CheckpointError(f"{directory} does not say which task it was trained on; use load() in Python.")
    name = base or (described.get("base") or {}).get("name_or_path")
    model = load(directory, None if name is None else resolve_model(name))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(directory))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} has no usable tokenizer: {error}") from error
    return model, tokenizer, task
