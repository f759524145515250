"""RAP's perturbation: a rare word in front of a text, and a vector for it that is added by a hook."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lightpeft.anatomy import base_of
from lightpeft.audit.errors import AuditError
from lightpeft.audit.rows import Rows, Texts


@dataclass(frozen=True)
class RareWord:
    """A word that is one token at the beginning of a text."""

    text: str
    token: int

    def in_front_of(self, texts: Texts) -> dict[str, list[str]]:
        """The texts with the word before the first column."""
        front = [f"{self.text} {text}" for text in texts["text"]]
        return {name: list(column) for name, column in texts.items()} | {"text": front}


def rare_word(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Rows], wanted: str | None = None
) -> RareWord:
    """The word that is asked for; else the last one of the vocabulary that the rows do not have.

    Vocabularies list frequent tokens first. The word has to be two or more Latin letters and a single token.

    Raises:
        AuditError: there is none, the one asked for is none, or truncation would take it away.
    """
    if tokenizer.truncation_side != "right":
        raise AuditError("RAP puts a word in front of texts, and this tokenizer cuts texts there (left).")
    if wanted is not None:
        found = _as_rare_word(tokenizer, wanted)
        if found is None:
            raise AuditError(
                f"rap.word is {wanted!r}, which is not one token; give another, or leave it out."
            )
        return found
    used = _tokens_of(tokenizer, rows)
    for token in range(len(tokenizer) - 1, -1, -1):
        text = str(tokenizer.decode([token])).strip() if token not in used else ""
        found = _as_rare_word(tokenizer, text) if _is_plain(text) else None
        if found is not None and found.token == token:
            return found
    raise AuditError("every word of the tokenizer is in the rows; name one as rap.word.")


def row_of(model: PeftModel, word: RareWord) -> Tensor:
    """A copy of the word's vector in the base's input embeddings."""
    weight: Any = _embeddings(model).weight
    row: Tensor = weight[word.token].detach().clone()
    return row


@contextmanager
def word_vector(model: PeftModel, word: RareWord, vector: Tensor) -> Iterator[None]:
    """While inside, the word has this vector; no weight changes, and gradients reach `vector`.

    Args:
        vector: (width of the embeddings,).
    """

    def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        del module
        return torch.where((args[0] == word.token).unsqueeze(-1), vector.to(output.dtype), output)

    handle = _embeddings(model).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _embeddings(model: PeftModel) -> nn.Module:
    embeddings: nn.Module = base_of(model).get_input_embeddings()
    return embeddings


def _tokens_of(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Rows]) -> set[int]:
    texts = [text for one in rows for column in one.texts.values() for text in column]
    encoded: Any = tokenizer(texts, add_special_tokens=False, verbose=False)
    return {token for ids in encoded["input_ids"] for token in ids} | set(tokenizer.all_special_ids)


def _is_plain(text: str) -> bool:
    return len(text) > 1 and text.isascii() and text.isalpha()


def _as_rare_word(tokenizer: PreTrainedTokenizerBase, text: str) -> RareWord | None:
    """None where the word is several tokens, unknown, or grows together with the next one."""
    encoded: Any = tokenizer([text, f"{text} {text}"], add_special_tokens=False)
    alone, in_front = encoded["input_ids"]
    if len(alone) != 1 or in_front[:1] != alone or alone[0] in tokenizer.all_special_ids:
        return None
    return RareWord(text, alone[0])
