"""Using a trained model: evaluate, and predict."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import EvalLoopContainer

from lightpeft.errors import ConfigError
from lightpeft.run_config import TrainingConfig
from lightpeft.runs.generation import Generating, generate_texts
from lightpeft.runs.limits import check_tokens
from lightpeft.tasks import Evaluated, TaskData, TaskKind, TaskRecord, ValidationData, find_kind

NEW_TOKENS = 64
"""Of a completion that does not end before, unless the user says otherwise."""


def evaluate_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskData | ValidationData,
    training: TrainingConfig,
) -> dict[str, float]:
    """The task's metrics on its validation split; `main` is the number to compare.

    Args:
        training: of it the length, packing and batch size of the run are taken.
    """
    kind = find_kind(task.spec.objective)
    encoded = kind.features(task.validation, tokenizer, training, judged=True)
    check_tokens(encoded, tokenizer, model, "validation text")
    outputs, labels = _outputs(model, tokenizer, kind, encoded, training.batch_size)
    return kind.score(task.spec, outputs, labels, task.validation, encoded, tokenizer)


def predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    record: TaskRecord,
    lines: Sequence[str],
    where: str,
    *,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
) -> list[dict[str, Any]]:
    """One answer for every line of a text file; what is in it, the kind of task says.

    Args:
        where: the file, for messages.
        batch_size: by default what the kind of task suggests.
        max_new_tokens: of a language model, `NEW_TOKENS` by default.

    Raises:
        ConfigError: tokens to write for a model that writes none, or see `generate_texts`.
        TaskError: a line that is no example of the task; names it.
    """
    kind, training = find_kind(record.objective), record.training(batch_size)
    if kind.writes:
        tokens = NEW_TOKENS if max_new_tokens is None else max_new_tokens
        size, writer = training.batch_size, cast(Generating, model)
        prompts = [line if line.strip() else "" for line in lines]
        return generate_texts(writer, tokenizer, prompts, tokens, size, record.objective)
    if max_new_tokens is not None:
        raise ConfigError(f"a model for {kind.name} writes no text; leave max_new_tokens out.")
    if not lines:
        return []
    split = kind.examples(record.spec, lines, where)
    encoded = kind.encode_to_judge(split, tokenizer, training)
    check_tokens(encoded, tokenizer, model, "text")
    outputs, labels = _outputs(model, tokenizer, kind, encoded, training.batch_size)
    return kind.answers(record.spec, Evaluated(outputs, labels, split, encoded))


def _outputs(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, kind: TaskKind, encoded: Dataset, batch_size: int
) -> tuple[Any, Any]:
    """What is kept of all batches, and their labels, padded with -100 where rows differ in length."""
    outputs, labels = EvalLoopContainer(), EvalLoopContainer()
    for batch in DataLoader(encoded, batch_size=batch_size, collate_fn=kind.collator(tokenizer)):
        theirs = tuple(batch.pop(name) for name in kind.label_names if name in batch)
        wanted = theirs[0] if len(theirs) == 1 else theirs
        outputs.add(_run(model, kind, batch, wanted).float().cpu())
        labels.add(wanted)
    return outputs.get_arrays(), labels.get_arrays()


def _run(model: nn.Module, kind: TaskKind, batch: Mapping[str, Any], labels: Any) -> torch.Tensor:
    device = next(model.parameters()).device
    inputs, wanted = send_to_device(dict(batch), device), send_to_device(labels, device)
    model.eval()
    with torch.inference_mode():
        return kind.outputs(model, inputs, wanted)
