"""What an objective needs of a run, one row each: the model's class, features, batches, what is scored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from peft import TaskType
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from lightpeft.errors import ConfigError
from lightpeft.run_config import Objective, TrainingConfig
from lightpeft.tasks import encode, encode_language, token_losses

Collator = Callable[[list[dict[str, Any]]], Mapping[str, Any]]


@dataclass(frozen=True)
class ObjectiveRow:
    """How one objective is run."""

    auto_class: Any
    """Of transformers, which loads the base with the head that is needed."""

    peft_task: TaskType
    encode: Callable[..., Dataset]
    """(split, tokenizer, max_length) -> features; with `packs` also the keyword `packing`."""

    collator: Callable[[PreTrainedTokenizerBase], Collator]
    """Makes one padded batch of features."""

    scored: Callable[[Tensor, Tensor], Tensor] | None = None
    """(logits, labels) of a batch -> what the metrics are computed from; None: the logits."""

    packs: bool = False
    """Whether texts can be joined into rows of equal length."""

    batch_size: int = 128
    """Rows at once when a trained model is used, unless the user says otherwise."""

    evaluation_batches: int = 4
    """Training batches in one evaluation batch: no activations are kept, but logits may be large."""


OBJECTIVES: dict[Objective, ObjectiveRow] = {
    "sequence-classification": ObjectiveRow(
        AutoModelForSequenceClassification, TaskType.SEQ_CLS, encode, DataCollatorWithPadding
    ),
    "causal-lm": ObjectiveRow(
        AutoModelForCausalLM,
        TaskType.CAUSAL_LM,
        encode_language,
        # Not the collator for language modelling: where EOS pads, that would not learn to end a text.
        DataCollatorForSeq2Seq,
        scored=token_losses,
        packs=True,
        batch_size=8,
        evaluation_batches=1,
    ),
}


def features(
    objective: Objective, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig
) -> Dataset:
    """A split as the model takes it.

    Raises:
        ConfigError: packing, for an objective that learns one label per text.
        TaskError: the split gives nothing to learn from.
    """
    row = OBJECTIVES[objective]
    if not row.packs:
        if training.packing:
            raise ConfigError(
                f"training.packing joins texts, but {objective} learns a label for each; leave it out."
            )
        return row.encode(split, tokenizer, training.tokens)
    return row.encode(split, tokenizer, training.tokens, packing=training.packing)
