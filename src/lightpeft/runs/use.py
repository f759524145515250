"""Using a trained model: evaluate, and predict labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase

from lightpeft.run_config import TrainingConfig
from lightpeft.runs.limits import check_tokens
from lightpeft.runs.objectives import OBJECTIVES, features
from lightpeft.tasks import TaskData, ValidationData, compute_metrics_for, encode


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
    row = OBJECTIVES[task.spec.objective]
    predictions, labels = [], []
    encoded = features(task.spec.objective, task.validation, tokenizer, training)
    check_tokens(encoded, tokenizer, model, "validation text")
    loader: DataLoader[Any] = DataLoader(
        encoded,
        batch_size=training.batch_size,
        collate_fn=row.collator(tokenizer),
    )
    for batch in loader:
        wanted = batch.pop("labels")
        found = _logits(model, batch)
        if row.scored is not None:
            found = row.scored(found, wanted.to(found.device))
        predictions.append(found.float().cpu().numpy())
        # Of language modelling only the losses are scored, and rows of labels differ in length.
        labels.append(wanted.reshape(len(wanted), -1)[:, 0].numpy())
    prediction = EvalPrediction(np.concatenate(predictions), np.concatenate(labels))
    return compute_metrics_for(task.spec)(prediction)


def predict_labels(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[str]],
    record: Mapping[str, Any],
    batch_size: int,
) -> list[dict[str, Any]]:
    """One answer per row: `label` and `probability`, or `value` for a regression."""
    if not rows:
        return []
    columns = zip(("text", "text_pair"), zip(*rows, strict=True), strict=False)
    texts = Dataset.from_dict({name: list(column) for name, column in columns})
    encoded = encode(texts, tokenizer, record["max_length"])
    check_tokens(encoded, tokenizer, model, "text")
    loader: DataLoader[Any] = DataLoader(
        encoded, batch_size=batch_size, collate_fn=DataCollatorWithPadding(tokenizer)
    )
    return [_answer(logits, record) for batch in loader for logits in _logits(model, batch).float().cpu()]


def _answer(logits: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
    if record["regression"]:
        return {"value": float(logits[0])}
    probabilities = logits.softmax(-1)
    best = int(probabilities.argmax())
    return {"label": record["class_names"][best], "probability": float(probabilities[best])}


def _logits(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        outputs = model(**{name: value.to(device) for name, value in batch.items()})
    logits: torch.Tensor = outputs.logits
    return logits
