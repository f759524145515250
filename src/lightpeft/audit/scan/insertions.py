"""Tokens put into texts of token ids, and the log odds of the classes then."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightpeft.anatomy import base_of

TOKENS = 3072
"""Tokens of a batch, about."""
MEASURED = (32, 16)
"""Rows and tokens of the batch by whose time a precision is chosen."""
POSITIONS = 3
"""Texts take turns: their insertion stands at the start, in the middle, at the end."""


@dataclass(frozen=True)
class Context:
    """One text in token ids, with the place where tokens are inserted."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def filled(self, tokens: Sequence[int]) -> list[int]:
        """The ids with `tokens` at the place."""
        return [*self.before, *tokens, *self.after]


def contexts_of(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], words: int, room: int
) -> list[Context]:
    """Texts cut to `words` words, each with one place between two words or at an end.

    Args:
        room: tokens of a text at most; the tokenizer's special tokens come on top.
    """
    start, end = _special_ends(tokenizer)
    found = []
    for number, text in enumerate(texts):
        left, right = (
            tokenizer(" ".join(part), add_special_tokens=False)["input_ids"]
            for part in halves(text.split()[:words], number)
        )
        kept = left[:room]
        found.append(Context((*start, *kept), (*right[: room - len(kept)], *end)))
    return found


def halves(words: Sequence[str], number: int) -> tuple[Sequence[str], Sequence[str]]:
    """The words of the text of this number before and after the place of an insertion."""
    cut = (0, len(words) // 2, len(words))[number % POSITIONS]
    return words[:cut], words[cut:]


def windows_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int) -> list[Context]:
    """The first `most` pairs of neighbouring words in texts, each with one place."""
    words = [text.split() for text in texts]
    pairs = [" ".join(row[at : at + 2]) for row in words for at in range(0, len(row) - 1, 2)]
    return contexts_of(tokenizer, pairs[:most], 2, 8)


def _special_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    word: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    at = next(index for index in range(len(whole)) if whole[index : index + len(word)] == word)
    return whole[:at], whole[at + len(word) :]


class Prober:
    """A model in evaluation mode that is asked about rows of token ids."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._pad = int(tokenizer.pad_token_id or 0)
        embedding: Any = base_of(model).get_input_embeddings()
        self._device: torch.device = embedding.weight.device
        self.vocabulary = len(embedding.weight)
        """Rows of the embedding."""
        self.precision = torch.float32
        self.precision = self._faster()
        """That this machine is faster in: some processors only emulate bfloat16."""

    def odds(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(n, classes): log p / (1 - p) of rows of ids; above 0 is likelier than all others together.

        Good to about 0.01 where bfloat16 is the faster precision.
        """
        return self._batched(rows, lambda inputs: _log_odds(self._model(**inputs).logits.float()))

    def _faster(self) -> torch.dtype:
        count, length = MEASURED
        rows = [[1 + index % (self.vocabulary - 1) for index in range(length)]] * count
        seconds: dict[torch.dtype, float] = {}
        for precision in (torch.float32, torch.bfloat16):
            self.precision = precision
            self.odds(rows)  # the first time is longer
            started = time.perf_counter()
            self.odds(rows)
            seconds[precision] = time.perf_counter() - started
        return min(seconds, key=lambda precision: seconds[precision])

    def _batched(self, rows: Sequence[Sequence[int]], of: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """`of` of padded batches of like lengths, in the order of the rows."""
        self._model.eval()
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        parts, start = [], 0
        is_plain = self.precision == torch.float32
        cast = torch.autocast(self._device.type, torch.bfloat16, enabled=not is_plain)
        with torch.inference_mode(), cast:
            while start < len(order):
                stop = start + max(1, TOKENS // len(rows[order[start]]))
                parts.append(of(self._padded([rows[row] for row in order[start:stop]])).cpu())
                start = stop
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        width = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(width) < lengths[:, None]).long()
        return {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}


def _log_odds(logits: Tensor) -> Tensor:
    logs = logits.log_softmax(-1)
    classes = range(logits.shape[1])
    rest = [torch.cat([logs[:, :one], logs[:, one + 1 :]], 1).logsumexp(1) for one in classes]
    return logs - torch.stack(rest, 1)
