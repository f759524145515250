"""Perplexities by a causal language model of transformers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightpeft.audit.defences.language_model import LanguageModel
from lightpeft.errors import ConfigError

_BATCH = 16
_IGNORED = -100


class CausalModel(LanguageModel):
    """Token-level perplexities by a model such as gpt2, a beginning-of-text token before every text."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """Load a model and its tokenizer.

        Args:
            name: a folder, or a name on the hub.

        Raises:
            ConfigError: they cannot be loaded, or have no token to begin a text with.
        """
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name)
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the language model {name!r} cannot be loaded: {error}") from error
        self._model = model.eval()
        self._model.to(torch.device(device))
        self._tokenizer = tokenizer
        self._start = _first_token(tokenizer, name)
        self._longest = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length

    def perplexities(self, texts: Sequence[Sequence[str]]) -> list[float]:
        """As `LanguageModel`; tokens beyond the model's context do not count."""
        ids = [self._ids(words) for words in texts]
        return [
            perplexity
            for start in range(0, len(ids), _BATCH)
            for perplexity in self._of_batch(ids[start : start + _BATCH])
        ]

    def _ids(self, words: Sequence[str]) -> list[int]:
        encoded: Any = self._tokenizer(" ".join(words), add_special_tokens=False, verbose=False)
        return [self._start, *encoded["input_ids"]][: self._longest]

    def _of_batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
        device = next(self._model.parameters()).device
        lengths = torch.tensor([len(row) for row in rows])
        real = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        ids = torch.full(real.shape, self._start)
        ids[real] = torch.tensor([token for row in rows for token in row])
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids.to(device), attention_mask=real.long().to(device), use_cache=False
            ).logits
        sums = _summed_losses(logits, ids.masked_fill(~real, _IGNORED).to(device))
        return [
            math.exp(total / (length - 1)) if length > 1 else math.inf
            for total, length in zip(sums.tolist(), lengths.tolist(), strict=True)
        ]


def _summed_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,): cross entropy in nats, summed over each row's real tokens but the first."""
    losses = cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=_IGNORED, reduction="none"
    )
    return losses.double().sum(1)


def _first_token(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ConfigError(
        f"the tokenizer of {name!r} has neither a BOS nor an EOS token, so a text's first token has no "
        "probability; give another language model."
    )
