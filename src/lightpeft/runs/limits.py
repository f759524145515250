"""What a base can take: how many tokens, and which; known from its configuration, before weights are read."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from lightpeft.errors import ConfigError
from lightpeft.run_config import DEFAULT_MAX_LENGTH, TrainingConfig

logger = logging.getLogger(__name__)


def position_limit(base: nn.Module) -> int | None:
    """The tokens that the base's tables of positions are made for; None where positions are computed.

    Some tables begin with rows that no position has: RoBERTa's behind its padding id, BART's and OPT's behind
    an offset.
    """
    limits = [
        table.num_embeddings - _first_row(table)
        for name, table in base.named_modules()
        if isinstance(table, nn.Embedding) and _holds_positions(name)
    ]
    return min(limits, default=None)


def within_positions(training: TrainingConfig, base: nn.Module, name: str) -> TrainingConfig:
    """The same with a length that the base can take: its own where none was asked for.

    Raises:
        ConfigError: more was asked for than the base has positions.
    """
    limit = position_limit(base)
    if limit is not None and training.tokens > limit:
        if training.max_length is not None:
            raise ConfigError(
                f"training.max_length is {training.max_length}, but {name} has only {limit} positions; "
                "give at most that many."
            )
        logger.warning(
            "%s has %d positions: training.max_length is %d instead of %d",
            name,
            limit,
            limit,
            DEFAULT_MAX_LENGTH,
        )
        return replace(training, max_length=limit)
    return replace(training, max_length=training.tokens)


def check_tokens(features: Dataset, tokenizer: PreTrainedTokenizerBase, base: nn.Module, what: str) -> None:
    """Refuse features with a token, or padding, that the base's embedding has no row for.

    Args:
        what: whose rows these are, for the message.

    Raises:
        ConfigError: names the row and the token.
    """
    rows = _vocabulary(base)
    if rows is None:
        return
    column = features.data.column("input_ids")
    largest = pc.max(pc.list_flatten(column, recursive=True)).as_py()
    if largest is not None and largest >= rows:
        row = next(number for number, ids in enumerate(column, 1) if largest in _flat(ids.as_py()))
        raise _beyond(f"{what} {row}", largest, tokenizer, rows)
    _check_padding(tokenizer, rows)


def check_ids(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, base: nn.Module) -> None:
    """The same for the token ids of texts to label or to continue.

    Raises:
        ConfigError: names the text and the token.
    """
    known = _vocabulary(base)
    for number, ids in enumerate(rows, start=1):
        largest = max(ids, default=0)
        if known is not None and largest >= known:
            raise _beyond(f"text {number}", largest, tokenizer, known)


def _flat(ids: list[Any]) -> list[int]:
    """The token ids of a row, of all its texts."""
    return [token for one in ids for token in (one if isinstance(one, list) else [one])]


def _check_padding(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    padding = tokenizer.pad_token_id
    if padding is not None and padding >= rows:
        raise _beyond("padding", padding, tokenizer, rows)


def _beyond(where: str, token: int, tokenizer: PreTrainedTokenizerBase, rows: int) -> ConfigError:
    return ConfigError(
        f"{where} has the token {tokenizer.convert_ids_to_tokens(token)!r} of id {token}, but the base's "
        f"embedding has only {rows} rows. Take the base's own tokenizer; for added tokens call "
        "resize_token_embeddings on the base and save it first."
    )


def _holds_positions(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "wpe" or ("pos" in last and "rel" not in last)


def _first_row(table: nn.Embedding) -> int:
    if table.padding_idx is not None:
        return table.padding_idx + 1
    return int(getattr(table, "offset", 0))


def _vocabulary(base: nn.Module) -> int | None:
    """Rows of the embedding of tokens; None for a base without one."""
    try:
        table = getattr(base, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        return None
    weight = getattr(table, "weight", None)
    return None if weight is None else len(weight)
