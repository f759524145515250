"""Writing one text from another with an encoder-decoder (summaries, translations)."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from lightpeft.errors import ConfigError
from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.columns import Columns, checked_texts
from lightpeft.tasks.errors import TaskError
from lightpeft.tasks.features import TYPES, encode
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds.kind import Collator, Evaluated, Metric, TaskKind, Usual
from lightpeft.tasks.spec import TaskSpec

LONGEST = 128
"""New tokens of what is written to be scored."""


def _library(name: str) -> Any:
    """A library that is only needed to score what models write.

    Raises:
        ConfigError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"what models write is scored by {name.partition('.')[0]}, which is not installed: "
            'pip install "lightpeft[writing]"'
        ) from error


def _rouge(name: str) -> Metric:
    """F1 of ROUGE, the mean over all texts, words stemmed as in the papers."""

    def score(right: Sequence[str], written: Sequence[str]) -> float:
        scorer = _library("rouge_score.rouge_scorer").RougeScorer([name], use_stemmer=True)
        pairs = zip(right, written, strict=True)
        return float(np.mean([scorer.score(one, found)[name].fmeasure for one, found in pairs]))

    return score


def _bleu(right: Sequence[str], written: Sequence[str]) -> float:
    return float(_library("sacrebleu").corpus_bleu(list(written), [list(right)]).score) / 100


def _chrf(right: Sequence[str], written: Sequence[str]) -> float:
    return float(_library("sacrebleu").corpus_chrf(list(written), [list(right)]).score) / 100


class SequenceToSequence(TaskKind):
    """Two text columns: what is read, and what is written. Metrics are fractions, of greedy continuations."""

    name = "seq2seq-lm"
    auto_class = AutoModelForSeq2SeqLM
    peft_task = TaskType.SEQ_2_SEQ_LM
    metrics = MappingProxyType(
        {name: _rouge(name) for name in ("rouge1", "rouge2", "rougeL")} | {"bleu": _bleu, "chrf": _chrf}
    )
    texts = (2,)
    own_text = ("source", "target")
    has_labels = False
    takes_classes = False
    in_order = True
    writes = True
    writes_to_be_scored = True
    batch_size = 16
    evaluation_batches = 1

    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        return checked_texts(spec.text, table)

    def head(self, spec: TaskSpec) -> None:
        return None

    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        """Both texts are cut to the same length."""
        features = encode(split.select_columns(["text"]), tokenizer, training.tokens)
        wanted = tokenizer(
            text_target=split["text_pair"][:], truncation=True, max_length=training.tokens, padding=False
        )
        if not any(wanted["input_ids"]):
            raise TaskError("no text to write has any token; check the column of the targets")
        labels = pa.array(wanted["input_ids"], TYPES["input_ids"])
        return features.add_column("labels", labels)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        collator: Collator = DataCollatorForSeq2Seq(tokenizer)
        return collator

    def outputs(self, model: Any, inputs: Mapping[str, Tensor], labels: Any) -> Tensor:
        """New token ids (texts, tokens): greedy, behind the token that begins every text."""
        positions = getattr(model.config, "max_position_embeddings", None)
        room = LONGEST if positions is None else positions - 1
        written: Tensor = model.generate(
            **{name: inputs[name] for name in ("input_ids", "attention_mask")},
            max_new_tokens=min(LONGEST, room),
            do_sample=False,
            num_beams=1,
        )
        return written

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
        ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
        return ids or [tokenizer.eos_token_id]

    def usual(self, spec: TaskSpec) -> Usual:
        return Usual(("rouge1", "rouge2", "rougeL", "bleu", "chrf"), ("rougeL",))

    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[list[str], list[str]]:
        if evaluated.split is None or evaluated.tokenizer is None:
            raise TaskError(
                "what is written is scored against the texts: give compute_metrics_for the split of "
                f"{spec.name!r} and the tokenizer"
            )
        padding = evaluated.tokenizer.pad_token_id
        ids = np.where(evaluated.outputs < 0, padding, evaluated.outputs).astype(int)
        written = evaluated.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return evaluated.split["text_pair"][:], [text.strip() for text in written]


KIND = SequenceToSequence()
