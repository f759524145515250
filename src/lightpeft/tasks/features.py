"""Texts -> token ids, unpadded; ``DataCollatorWithPadding`` pads each batch to its longest."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import BatchEncoding, PreTrainedTokenizerBase

from lightpeft.errors import listed
from lightpeft.tasks.errors import TaskError, TaskOptionError

logger = logging.getLogger(__name__)

BATCH = 1000
IGNORED = -100
"""The label of a token that is not learned, as in transformers."""

TYPES = {
    "input_ids": pa.list_(pa.int32()),
    "attention_mask": pa.list_(pa.int8()),
    "token_type_ids": pa.list_(pa.int8()),
}


def encode(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokenise the texts of a split.

    Args:
        data: columns ``text``, optionally ``text_pair``, and optionally ``label``.
        tokenizer: the base model's.
        max_length: tokens to keep of an example, special tokens included; of two texts the longer
            one is cut first.

    Returns:
        as many rows, in order: ``input_ids``, ``attention_mask``, ``token_type_ids`` where the
        tokenizer gives them, and ``labels`` (int64 class ids or float32) where there were labels.

    Raises:
        TaskError: no ``text`` column, or ``max_length`` leaves no room for text.
    """
    _check(data, tokenizer, max_length)
    batches = (
        tokenizer(*texts, truncation=True, max_length=max_length, padding=False) for texts in _batches(data)
    )
    columns = _columns(batches, tokenizer)
    if "label" in data.column_names:
        columns["labels"] = data.with_format("arrow")["label"][:]
    return Dataset.from_dict(columns)


def encode_words(
    rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[dict[str, pa.ChunkedArray], list[list[int | None]]]:
    """Tokenise texts that are given as words, joined by spaces as a text is written.

    Returns:
        the features of all rows, cut to ``max_length`` tokens; and per row the word (from 0) that each token
        ends in, None for tokens of no word.

    Raises:
        TaskError: the tokenizer does not say where its tokens are, or ``max_length`` leaves no room.
    """
    require_offsets(tokenizer)
    check_room(tokenizer, max_length, pair=False)
    words: list[list[int | None]] = []

    def batches() -> Iterator[BatchEncoding]:
        for start in range(0, len(rows), BATCH):
            texts = rows[start : start + BATCH]
            encoded = tokenizer(
                [" ".join(text) for text in texts],
                truncation=True,
                max_length=max_length,
                padding=False,
                return_offsets_mapping=True,
            )
            for text, offsets in zip(texts, encoded["offset_mapping"], strict=True):
                place = _word_places(text)
                found = [place[end - 1] if end > begin else None for begin, end in offsets]
                words.append(found or [None])
            yield encoded

    return _columns(batches(), tokenizer), words


def _columns(
    batches: Iterable[BatchEncoding], tokenizer: PreTrainedTokenizerBase
) -> dict[str, pa.ChunkedArray]:
    """Tokenised batches as the columns of one split."""
    names = [name for name in TYPES if name in tokenizer.model_input_names]
    chunks: dict[str, list[pa.Array]] = {name: [] for name in names}
    for encoded in batches:
        _fill_blank(encoded, tokenizer)
        for name in names:
            chunks[name].append(pa.array(encoded[name], TYPES[name]))
    return {name: pa.chunked_array(chunks[name], TYPES[name]) for name in names}


def _word_places(words: Sequence[str]) -> list[int | None]:
    """Of every character of the joined words, which word it is in; None for the spaces between."""
    places: list[int | None] = []
    for number, word in enumerate(words):
        places += ([None] if number else []) + [number] * len(word)
    return places


def _fill_blank(encoded: BatchEncoding, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a text without any token (blank, and no special tokens around it) one; models need one."""
    filler = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    for row, ids in enumerate(encoded["input_ids"]):
        if not ids and filler is not None:
            for name, value in (("input_ids", filler), ("attention_mask", 1), ("token_type_ids", 0)):
                if name in encoded:
                    encoded[name][row] = [value]


def truncated_share(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float:
    """The share of examples, 0 to 1, that ``encode`` cuts because they have more tokens.

    Tokenises once more, without truncation. 0.0 for no examples.

    Raises:
        TaskError: as ``encode``.
    """
    _check(data, tokenizer, max_length)
    longer = 0
    for texts in _batches(data):
        encoded = tokenizer(*texts, truncation=False, padding=False, verbose=False)
        longer += sum(len(ids) > max_length for ids in encoded["input_ids"])
    return longer / max(1, len(data))


def _batches(data: Dataset) -> Iterator[list[list[str]]]:
    """The texts, and the second texts where there are any, of up to ``BATCH`` rows at a time."""
    names = [name for name in ("text", "text_pair") if name in data.column_names]
    for start in range(0, len(data), BATCH):
        rows: dict[str, Any] = data[start : start + BATCH]
        yield [rows[name] for name in names]


def _check(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    check_text(data)
    check_room(tokenizer, max_length, pair="text_pair" in data.column_names)


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not say where in a text its tokens are.

    Raises:
        TaskError: it is a slow one.
    """
    if not tokenizer.is_fast:
        raise TaskError(
            f"{type(tokenizer).__name__} does not say where in a text its tokens are; give the base a fast "
            "tokenizer"
        )


def check_room(tokenizer: PreTrainedTokenizerBase, max_length: int, *, pair: bool) -> None:
    """Refuse a length that the special tokens fill.

    Raises:
        TaskError: says how many there are.
    """
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length <= special:
        raise TaskOptionError(
            f"max_length {max_length} leaves no room for text beside {special} special tokens; give more"
        )
    warn_beyond_model(tokenizer, max_length)


def check_text(data: Dataset) -> None:
    """Refuse a split that ``load_task`` did not make.

    Raises:
        TaskError: it has no ``text`` column.
    """
    if "text" not in data.column_names:
        raise TaskError(
            f"no column 'text'; found {listed(data.column_names)}; load the split with load_task, or rename "
            "the column"
        )


def warn_beyond_model(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Warn if the tokenizer says that its model was made for fewer tokens."""
    if max_length > tokenizer.model_max_length:
        logger.warning(
            "max_length %d is more than the %d tokens that the tokenizer's model was made for",
            max_length,
            tokenizer.model_max_length,
        )
