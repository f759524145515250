"""Using a trained model: evaluate and predict."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase

from lightpeft.tasks import TaskData, compute_metrics_for, encode


def evaluate_model(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskData,
    max_length: int,
    batch_size: int,
) -> dict[str, float]:
    """The task's metrics on its validation split; `main` is the number to compare."""
    features = encode(task.validation, tokenizer, max_length)
    logits, labels = [], []
    loader: DataLoader[Any] = DataLoader(
        features,
        batch_size=batch_size,
        collate_fn=DataCollatorWithPadding(tokenizer),
    )
    for batch in loader:
        labels.append(batch.pop("labels").numpy())
        logits.append(_logits(model, batch).numpy())
    prediction = EvalPrediction(np.concatenate(logits), np.concatenate(labels))
    return compute_metrics_for(task.spec)(prediction)


def predict_labels(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[str]],
    record: Mapping[str, Any],
    batch_size: int,
) -> list[dict[str, Any]]:
    """One answer per row: `label` and `probability`, or `value` for a regression."""
    answers = []
    for start in range(0, len(rows), batch_size):
        texts = [list(column) for column in zip(*rows[start : start + batch_size], strict=True)]
        batch = tokenizer(
            *texts, truncation=True, max_length=record["max_length"], padding=True, return_tensors="pt"
        )
        answers += [_answer(logits, record) for logits in _logits(model, batch)]
    return answers


def _answer(logits: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
    if record["regression"]:
        return {"value": float(logits[0])}
    probabilities = logits.softmax(-1)
    best = int(probabilities.argmax())
    return {"label": record["class_names"][best], "probability": float(probabilities[best])}


def _logits(model: PeftModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        outputs = model(**{name: value.to(device) for name, value in batch.items()})
    logits: torch.Tensor = outputs.logits
    return logits.float().cpu()
