"""Tokens put into texts of token ids, and what they do to the margin of a class."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lightpeft.anatomy import base_of

POSITIONS = 3
"""Texts take turns: their insertion stands at the start, in the middle, at the end."""
BATCH = 64


@dataclass(frozen=True)
class Context:
    """One text in token ids, with the place where tokens are inserted."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def filled(self, tokens: Sequence[int]) -> list[int]:
        """The ids with `tokens` at the place."""
        return [*self.before, *tokens, *self.after]


def contexts_of(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], words: int, max_length: int
) -> list[Context]:
    """Texts cut to `words` words, each with one place between two words or at an end.

    The tokenizer's special tokens stay at the ends, and no text is longer than `max_length` tokens.
    """
    found = []
    for number, text in enumerate(texts):
        pieces = text.split()[:words]
        cut = (0, len(pieces) // 2, len(pieces))[number % POSITIONS]
        left, right = (
            tokenizer(" ".join(part), add_special_tokens=False)["input_ids"]
            for part in (pieces[:cut], pieces[cut:])
        )
        start, end = _special_ends(tokenizer)
        room = max_length - len(start) - len(end)
        found.append(Context((*start, *left[:room]), (*right[: max(0, room - len(left))], *end)))
    return found


def _special_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(index for index in range(len(whole)) if whole[index : index + len(word)] == word)
    return whole[:at], whole[at + len(word) :]


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Rows of ids as a batch, padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": (torch.arange(width, device=device) < lengths[:, None]).long()}


def log_odds(logits: Tensor) -> Tensor:
    """(n, classes): log p_c / (1 - p_c), float32; above 0 means more likely than all others together."""
    logs = logits.float().log_softmax(-1)
    return torch.stack(
        [
            logs[:, c] - torch.cat([logs[:, :c], logs[:, c + 1 :]], 1).logsumexp(1)
            for c in range(logs.shape[1])
        ],
        1,
    )


class Prober:
    """A model in evaluation mode that is asked about contexts with tokens in them."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.embedding = base_of(model).get_input_embeddings()
        self._pad = tokenizer.pad_token_id or 0
        self._device = self.embedding.weight.device

    def odds(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(n, classes): log odds of rows of ids."""
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        parts = []
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                chosen = [rows[row] for row in order[start : start + BATCH]]
                logits = self.model(**padded(chosen, self._pad, self._device)).logits
                parts.append(log_odds(logits).cpu())
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def gradient(
        self, contexts: Sequence[Context], tokens: Sequence[int], place: int, target: int
    ) -> Tensor:
        """(width,): gradient of the target's log odds by the embedding at `place` of `tokens`, mean.

        Times the rows of the embedding it is the first-order gain of other tokens at the place.
        """
        held: list[Tensor] = []

        def hold(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            held.append(output.detach().requires_grad_(True))
            return held[-1]

        hook = self.embedding.register_forward_hook(hold)
        try:
            rows = [context.filled(tokens) for context in contexts]
            odds = log_odds(self.model(**padded(rows, self._pad, self._device)).logits)[:, target]
        finally:
            hook.remove()
        (gradient,) = torch.autograd.grad(odds.sum(), held[0])
        at = torch.tensor([len(context.before) + place for context in contexts])
        return gradient[torch.arange(len(at)), at].mean(0).float().cpu()
