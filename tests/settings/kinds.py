"""The tasks that rows train on: a tiny base in a folder, random data for it, and where LoRA goes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from tests.support.language import WORDS, save_language_model
from tests.support.zoo import BY_NAME, VOCABULARY

ROWS, LABELS = 32, 3
Example = dict[str, Tensor]

_BERT = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_BART = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class Kind:
    """One task of one architecture."""

    animal: str
    """Of the zoo; its model is what the folder of the base holds."""

    auto: Any
    """The class that users load the base with."""

    targets: tuple[str, ...]
    task_type: str | None
    labelled: Callable[[Example, torch.Generator], Example] = field(default=lambda batch, _: batch)
    """Makes a task's batch of the animal's."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """What users pass to from_pretrained."""

    headless: bool = True
    """Whether the folder lacks the head, which is then drawn at random."""

    words: bool = False
    """Whether a tokenizer of a few words belongs to it, and its vocabulary is that small."""

    def save_base(self, folder: Path) -> Path:
        """Write the base as a stock checkpoint."""
        if self.words:
            return save_language_model(self.animal, folder)
        animal = BY_NAME[self.animal]
        model = animal.build(animal.attentions[-1])
        (model.base_model if self.headless else model).save_pretrained(folder)
        return folder

    def load_base(self, folder: Path, **options: Any) -> PreTrainedModel:
        """The base as users load it; a random head is the same one every time."""
        with torch.random.fork_rng():
            torch.manual_seed(11)
            model = self.auto.from_pretrained(folder, **(dict(self.options) | options))
        assert isinstance(model, PreTrainedModel)
        return model

    def examples(self, count: int = ROWS, seed: int = 0) -> list[Example]:
        """Random examples with labels, padded to one length."""
        batches = [self._batch(seed + i) for i in range(-(-count // 3))]
        rows = [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(3)]
        return rows[:count]

    def probe(self) -> Example:
        """A padded batch without labels, to compare logits on."""
        batch = self._batch(99)
        unlabelled = {key: value for key, value in batch.items() if key not in _LABELS}
        if "labels" in batch and self.auto in (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq):
            unlabelled["decoder_input_ids"] = batch["labels"]
        return unlabelled

    def _batch(self, seed: int) -> Example:
        generator = torch.Generator().manual_seed(seed)
        animal = BY_NAME[self.animal]
        batch = animal.batch(padded=True, labels=True, seed=seed)
        if self.words:
            batch = {
                k: v if k == "attention_mask" else v.where(v < 3, v % len(WORDS) + 3)
                for k, v in batch.items()
            }
        return self.labelled(batch, generator)


_LABELS = ("labels", "start_positions", "end_positions")


def _classes(batch: Example, generator: torch.Generator) -> Example:
    return batch | {"labels": torch.randint(0, LABELS, (3,), generator=generator)}


def _numbers(batch: Example, generator: torch.Generator) -> Example:
    return batch | {"labels": torch.randn(3, generator=generator)}


def _several_classes(batch: Example, generator: torch.Generator) -> Example:
    return batch | {"labels": torch.randint(0, 2, (3, LABELS), generator=generator).float()}


def _token_classes(batch: Example, generator: torch.Generator) -> Example:
    classes = torch.randint(0, LABELS, batch["input_ids"].shape, generator=generator)
    return batch | {"labels": classes.masked_fill(batch["attention_mask"] == 0, -100)}


def _spans(batch: Example, generator: torch.Generator) -> Example:
    rest = {key: value for key, value in batch.items() if key != "labels"}
    start = torch.randint(0, 2, (3,), generator=generator)
    return rest | {"start_positions": start, "end_positions": start + 1}


def _choices(batch: Example, generator: torch.Generator) -> Example:
    twice = {key: torch.stack([value, value.flip(0)], 1) for key, value in batch.items() if key != "labels"}
    return twice | {"labels": torch.randint(0, 2, (3,), generator=generator)}


def _masked(batch: Example, generator: torch.Generator) -> Example:
    chosen = torch.rand(batch["input_ids"].shape, generator=generator) < 0.3
    chosen[:, 0] = True
    labels = batch["input_ids"].masked_fill(~chosen, -100)
    return batch | {"input_ids": batch["input_ids"].masked_fill(chosen, VOCABULARY - 2), "labels": labels}


def _text(auto: Any, task_type: str | None, labelled: Any, **options: Any) -> Kind:
    return Kind("bert", auto, _BERT, task_type, labelled, options)


BERT = _text(AutoModelForSequenceClassification, "SEQ_CLS", _classes, num_labels=LABELS)
REGRESSION = _text(
    AutoModelForSequenceClassification, "SEQ_CLS", _numbers, num_labels=1, problem_type="regression"
)
MULTI_LABEL = _text(
    AutoModelForSequenceClassification,
    "SEQ_CLS",
    _several_classes,
    num_labels=LABELS,
    problem_type="multi_label_classification",
)
TOKENS = _text(AutoModelForTokenClassification, "TOKEN_CLS", _token_classes, num_labels=LABELS)
ANSWERS = _text(AutoModelForQuestionAnswering, "QUESTION_ANS", _spans)
CHOICES = _text(AutoModelForMultipleChoice, None, _choices)
MASKED = Kind("bert", AutoModelForMaskedLM, _BERT, None, _masked)
ROBERTA = Kind("roberta", AutoModelForSequenceClassification, _BERT, "SEQ_CLS", _classes, {"num_labels": 3})
DEBERTA = Kind(
    "deberta-v2",
    AutoModelForSequenceClassification,
    ("query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense", "output.dense"),
    "SEQ_CLS",
    _classes,
    {"num_labels": 3},
)
LLAMA = Kind("llama", AutoModelForCausalLM, _LLAMA, "CAUSAL_LM", headless=False)
LLAMA_CLASSIFIER = Kind(
    "llama",
    AutoModelForSequenceClassification,
    _LLAMA,
    "SEQ_CLS",
    _classes,
    {"num_labels": LABELS, "pad_token_id": 1},
)
WORDY = Kind(
    "llama",
    AutoModelForCausalLM,
    _LLAMA,
    "CAUSAL_LM",
    options={"pad_token_id": 2},
    headless=False,
    words=True,
)
GPT2 = Kind("gpt2", AutoModelForCausalLM, ("c_attn", "c_proj", "c_fc"), "CAUSAL_LM", headless=False)
T5 = Kind("t5", AutoModelForSeq2SeqLM, ("q", "k", "v", "o", "wi", "wo"), "SEQ_2_SEQ_LM", headless=False)
BART = Kind("bart", AutoModelForSeq2SeqLM, _BART, "SEQ_2_SEQ_LM", headless=False)
WHISPER = Kind("whisper", AutoModelForSpeechSeq2Seq, _BART, None, headless=False)
WAV2VEC2 = Kind(
    "wav2vec2",
    AutoModelForAudioClassification,
    ("q_proj", "k_proj", "v_proj", "attention.out_proj", "intermediate_dense", "output_dense"),
    None,
    _classes,
    {"num_labels": LABELS},
)
VIT = Kind(
    "vit",
    AutoModelForImageClassification,
    ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
    None,
    _classes,
    {"num_labels": LABELS},
)
