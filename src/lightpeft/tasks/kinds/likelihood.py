"""The choice that a language model finds likeliest behind a context, scored as lm-evaluation-harness does."""

from types import MappingProxyType
from typing import Any

import numpy as np
from datasets import Dataset
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.errors import TaskError
from lightpeft.tasks.features import IGNORED
from lightpeft.tasks.kinds.kind import Array, Collator, Evaluated, Usual
from lightpeft.tasks.kinds.language_modelling import KIND as LANGUAGE_MODELLING
from lightpeft.tasks.kinds.language_modelling import (
    Row,
    check_tokenizer,
    encode_judged,
    encode_rows,
    first_id,
    text_ids,
)
from lightpeft.tasks.kinds.multiple_choice import MultipleChoice
from lightpeft.tasks.spec import TaskSpec

SUM, PER_CHARACTER = 0, 1
"""Columns of the predictions: the choice by its log-likelihood, and by that over its characters."""


def _right(column: int) -> Any:
    def share(labels: Array, predictions: Array) -> float:
        return float((labels == predictions[:, column]).mean())

    return share


class LikelihoodChoice(MultipleChoice):
    """The columns of multiple choice, for models that see a text from one side.

    The right choice behind its context is learned; every choice is judged, by its log-likelihood
    (`accuracy`) or by that per character (`accuracy_norm`): `acc` and `acc_norm` of lm-evaluation-harness.
    """

    name = "causal-multiple-choice"
    auto_class = AutoModelForCausalLM
    peft_task = TaskType.CAUSAL_LM
    metrics = MappingProxyType({"accuracy": _right(SUM), "accuracy_norm": _right(PER_CHARACTER)})
    in_order = True
    only_decoders = True
    for_decoders = None
    batch_size = 8
    evaluation_batches = 1

    def head(self, spec: TaskSpec) -> None:
        return None

    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        """The right choice of every row, and the EOS token; only these are learned."""
        check_tokenizer(tokenizer, training.tokens)
        end = tokenizer.eos_token_id
        rows = (
            ([*ids, end], [*labels, end])
            for example in split
            for ids, labels in [_behind(example["text"], example["choices"][example["label"]], tokenizer)]
        )
        return encode_rows(rows, len(split), tokenizer, training.tokens, packing=False)

    def encode_to_judge(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig
    ) -> Dataset:
        """Every choice of every row, one after the other; only the choice counts.

        Raises:
            TaskError: a choice that adds no token to its context.
        """
        rows = (
            _behind(example["text"], choice, tokenizer) for example in split for choice in example["choices"]
        )
        return encode_judged(rows, tokenizer, training.tokens)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        return LANGUAGE_MODELLING.collator(tokenizer)

    def kept(self, logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
        return LANGUAGE_MODELLING.kept(logits, labels)

    def usual(self, spec: TaskSpec) -> Usual:
        return Usual(("accuracy", "accuracy_norm"), ("accuracy",))

    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[Array, Array]:
        if evaluated.split is None:
            raise TaskError(
                "choices are scored by what is in the split: give compute_metrics_for the split of "
                f"{spec.name!r}"
            )
        found = self.logs(evaluated)
        lengths = np.array([[len(choice) for choice in row] for row in evaluated.split["choices"]])
        picks = [found.argmax(axis=1), (found / np.maximum(lengths, 1)).argmax(axis=1)]
        return np.asarray(evaluated.split["label"][:]), np.stack(picks, axis=1)

    def logs(self, evaluated: Evaluated) -> Array:
        """The sums of log-likelihoods over the tokens of each choice."""
        assert evaluated.split is not None
        sums: Array = -evaluated.outputs[:, 0].astype(np.float64)
        return sums.reshape(len(evaluated.split), -1)


def _behind(context: str, choice: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Token ids of a choice behind its context, and labels of the choice alone.

    Both are tokenised together, and what the context alone does not have belongs to the choice; spaces at the
    end of a context belong to it too.
    """
    stripped = context.rstrip()
    continued = f"{context[len(stripped) :]} {choice}"
    prompt, whole = text_ids(tokenizer, stripped), text_ids(tokenizer, stripped + continued)
    if not prompt:  # the first token of the choice needs one to be predicted from
        prompt, whole = [first_id(tokenizer)], [first_id(tokenizer), *whole]
    if len(whole) <= len(prompt):
        raise TaskError(f"the choice {choice!r:.60} adds no token to its context {context!r:.60}")
    return whole, [IGNORED] * len(prompt) + whole[len(prompt) :]


KIND = LikelihoodChoice()
