"""Learning to write a text, or the completion of a prompt; padded or packed, judged by the loss."""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from peft import TaskType
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.columns import Columns, checked_texts
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.features import BATCH, IGNORED, TYPES, check_text, warn_beyond_model
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds.kind import Array, Collator, Evaluated, TaskKind, Usual
from lightpeft.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)

LARGEST_LOSS = 100.0
"""Nats per token; guessing among a million tokens costs 14."""

Row = tuple[list[int], list[int]]
"""Token ids and labels of one text, equally many."""


def encode_language(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, packing: bool = False
) -> Dataset:
    """Tokenise a split for causal language modelling; every text ends in the EOS token.

    Labels are the token ids themselves (the model shifts them), and -100 on a prompt. Prompt and
    completion are tokenised one by one, so that a prompt has the tokens that it has when predicting.

    Args:
        data: the column ``text``, or ``text`` (prompt) and ``text_pair`` (completion).
        tokenizer: the base model's; special tokens that it puts before a text are kept.
        max_length: tokens of a row. Longer texts are cut at their end; a prompt that is too long for
            its completion loses its first tokens, but for the special ones.
        packing: join the texts and split them into rows of exactly ``max_length`` tokens; nothing is
            cut, and the last tokens that fill no row are dropped.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``; rows without anything to learn are dropped.

    Raises:
        TaskError: no ``text`` column, no EOS token, ``max_length`` below 2, or no row is left.
    """
    check_text(data)
    check_tokenizer(tokenizer, max_length)
    return encode_rows(_rows(data, tokenizer), len(data), tokenizer, max_length, packing=packing)


def encode_rows(
    texts: Iterator[Row], count: int, tokenizer: PreTrainedTokenizerBase, max_length: int, *, packing: bool
) -> Dataset:
    """The features of `count` whole texts, cut or packed; see `encode_language`.

    Raises:
        TaskError: no row is left.
    """
    rows = _packed(texts, max_length) if packing else _shortened(texts, max_length, tokenizer)
    encoded = _dataset(_learnable(rows))
    if not len(encoded):
        raise TaskError(
            f"{count} texts give no row of {max_length} tokens to learn from; give more or longer texts, "
            "or, with packing, a smaller max_length"
        )
    return encoded


def encode_judged(texts: Iterator[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """The features of texts of which something is said, cut as those that are learned; none is dropped."""
    return _dataset(_shortened(texts, max_length, tokenizer))


def token_losses(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """What a language model's metrics need of a batch: two numbers per text instead of its logits.

    As ``preprocess_logits_for_metrics`` of a Trainer it keeps the logits of a split out of memory.

    Args:
        logits: (texts, tokens, vocabulary); of a tuple of outputs the first is used.
        labels: (texts, tokens), -100 where a token does not count.

    Returns:
        float32 (texts, 2): the summed cross entropy in nats, and how many tokens it is summed over.
    """
    scores = logits[0] if isinstance(logits, tuple) else logits
    following = labels[:, 1:]
    # Text by text: a float32 copy of all logits of a batch may not fit into memory.
    sums = [
        cross_entropy(of_text[:-1].float(), tokens, ignore_index=IGNORED, reduction="sum")
        for of_text, tokens in zip(scores, following, strict=True)
    ]
    return torch.stack([torch.stack(sums), (following != IGNORED).sum(1).float()], dim=1)


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that is to go on: without an EOS token behind them."""
    return without_end(tokenizer(text, verbose=False)["input_ids"], tokenizer)


def without_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens without an EOS token behind them."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def first_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that a text without any goes on from."""
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return int(found)


def _rows(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[Row]:
    """Every text whole, with its EOS token."""
    end = tokenizer.eos_token_id
    for start in range(0, len(data), BATCH):
        texts = data[start : start + BATCH]
        # Whole texts may be longer than the model's context; they are cut or split later.
        first = [without_end(ids, tokenizer) for ids in tokenizer(texts["text"], verbose=False)["input_ids"]]
        if "text_pair" not in texts:
            yield from (([*ids, end], [*ids, end]) for ids in first)
            continue
        second = tokenizer(texts["text_pair"], add_special_tokens=False, verbose=False)["input_ids"]
        for prompt, completion in zip(first, second, strict=True):
            learned = [*completion, end]
            yield prompt + learned, [IGNORED] * len(prompt) + learned


def _shortened(texts: Iterator[Row], max_length: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[Row]:
    """Every text as a row of at most `max_length` tokens."""
    longer = count = 0
    for row in texts:
        count += 1
        longer += len(row[0]) > max_length
        yield _cut_to(max_length, row, tokenizer)
    if longer:
        logger.warning(
            "%d of %d texts have more than %d tokens and are cut; give a larger max_length, or packing",
            longer,
            count,
            max_length,
        )


def _cut_to(max_length: int, row: Row, tokenizer: PreTrainedTokenizerBase) -> Row:
    """A row of at most `max_length` tokens: first the prompt loses its beginning, then the text its end."""
    ids, labels = row
    prompt = next((place for place, label in enumerate(labels) if label != IGNORED), 0)
    excess = len(ids) - max_length
    if excess <= 0:
        return row
    special = _special_prefix(ids[:prompt], tokenizer)
    cut = min(excess, prompt - max(special, min(prompt, 1)))
    ids = ids[:special] + ids[special + cut :]
    labels = labels[:special] + labels[special + cut :]
    return ids[:max_length], labels[:max_length]


def _special_prefix(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens a text begins with."""
    special = set(tokenizer.all_special_ids)
    return next((place for place, token in enumerate(ids) if token not in special), len(ids))


def _packed(rows: Iterator[Row], max_length: int) -> Iterator[Row]:
    """All rows joined and split into rows of `max_length` tokens."""
    ids: list[int] = []
    labels: list[int] = []
    for row in rows:
        ids += row[0]
        labels += row[1]
        whole = len(ids) // max_length * max_length
        for start in range(0, whole, max_length):
            yield ids[start : start + max_length], labels[start : start + max_length]
        del ids[:whole], labels[:whole]
    if ids:
        logger.info("packing: the last %d tokens fill no row of %d and are dropped", len(ids), max_length)


def _learnable(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows in which at least one token is predicted; the first one of a row never is."""
    dropped = 0
    for row in rows:
        if any(label != IGNORED for label in row[1][1:]):
            yield row
        else:
            dropped += 1
    if dropped:
        logger.warning("%d rows have no token to learn and are dropped", dropped)


def _dataset(rows: Iterator[Row]) -> Dataset:
    types = {**{name: TYPES[name] for name in ("input_ids", "attention_mask")}, "labels": TYPES["input_ids"]}
    chunks: dict[str, list[pa.Array]] = {name: [] for name in types}
    while batch := list(islice(rows, BATCH)):
        columns = {
            "input_ids": [ids for ids, _ in batch],
            "attention_mask": [[1] * len(ids) for ids, _ in batch],
            "labels": [labels for _, labels in batch],
        }
        for name, values in columns.items():
            chunks[name].append(pa.array(values, types[name]))
    return Dataset.from_dict({name: pa.chunked_array(chunks[name], types[name]) for name in types})


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Refuse a tokenizer that cannot end a text, and a length that leaves nothing to predict.

    Raises:
        TaskError: says which.
    """
    if tokenizer.eos_token_id is None:
        raise TaskError(
            "the tokenizer has no EOS token, which ends every text; set tokenizer.eos_token, or take a model "
            "that was made to write text"
        )
    if max_length < 2:
        raise TaskOptionError(
            f"max_length is {max_length}; a token is predicted from another one, so give at least 2"
        )
    warn_beyond_model(tokenizer, max_length)


def _loss(_labels: Any, losses: Array) -> float:
    """Mean loss per token over all texts: the sum of the losses over the number of tokens."""
    total, count = losses.astype(np.float64).sum(axis=0)
    return float(total / count)


def _perplexity(labels: Any, losses: Array) -> float:
    return math.exp(_loss(labels, losses))


class LanguageModelling(TaskKind):
    """The next token. Metrics are better the lower they are: nats per token, and their exponential."""

    name = "causal-lm"
    auto_class = AutoModelForCausalLM
    peft_task = TaskType.CAUSAL_LM
    metrics = MappingProxyType({"loss": _loss, "perplexity": _perplexity})
    own_text = ("text",)
    has_labels = False
    takes_classes = False
    only_decoders = True
    packs = True
    writes = True
    batch_size = 8
    evaluation_batches = 1

    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        return checked_texts(spec.text, table)

    def head(self, spec: TaskSpec) -> None:
        return None

    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        return encode_language(split, tokenizer, training.tokens, packing=training.packing)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        # Not the collator for language modelling: where EOS pads, that would not learn to end a text.
        collator: Collator = DataCollatorForSeq2Seq(tokenizer)
        return collator

    def kept(self, logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
        return token_losses(logits, labels)

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
        """The tokens that a text begins with in training: without an EOS token behind them."""
        return text_ids(tokenizer, prompt) or [first_id(tokenizer)]

    def usual(self, spec: TaskSpec) -> Usual:
        return Usual(("loss", "perplexity"), ("loss",))

    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[Any, Array]:
        total, count = evaluated.outputs.astype(np.float64).sum(axis=0)
        if not count:
            raise TaskError("no token to score: the evaluated split has no text that a token is predicted of")
        if total / count > LARGEST_LOSS:
            raise TaskError(
                f"the loss is {total / count:.0f} nats per token; the training diverged: lower the learning "
                "rate"
            )
        return evaluated.labels, evaluated.outputs


KIND = LanguageModelling()
