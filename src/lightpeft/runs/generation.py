"""Using a trained language model: continue texts, greedily, with the key-value cache."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightpeft.errors import ConfigError
from lightpeft.runs.limits import check_ids
from lightpeft.tasks import find_kind

Generating = PeftModel | PreTrainedModel


def generate_texts(
    model: Generating,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    objective: str = "causal-lm",
) -> list[dict[str, Any]]:
    """One `completion` per prompt: the likeliest next token, again and again, until the EOS token.

    Args:
        max_new_tokens: where a completion without an EOS token ends.
        batch_size: prompts that are continued at once, padded on their left.
        objective: what the model learned, which says what a prompt becomes.

    Raises:
        ConfigError: no new tokens, or a prompt that with them is longer than the model's positions.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; give at least 1.")
    kind = find_kind(objective)
    ids = [kind.prompt_ids(tokenizer, prompt) for prompt in prompts]
    check_ids(ids, tokenizer, model)
    _check_lengths(model, ids, max_new_tokens)
    answers: list[dict[str, Any]] = []
    for start in range(0, len(ids), batch_size):
        continued = _continue(model, tokenizer, ids[start : start + batch_size], max_new_tokens)
        texts = tokenizer.batch_decode(continued, skip_special_tokens=True)
        answers += [{"completion": text} for text in texts]
    return answers


def _check_lengths(model: Generating, ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return
    reads_first = bool(model.config.is_encoder_decoder)
    for number, prompt in enumerate(ids, start=1):
        needed = max(len(prompt), max_new_tokens + 1) if reads_first else len(prompt) + max_new_tokens
        if needed > limit:
            raise ConfigError(
                f"prompt {number} has {len(prompt)} tokens; with {max_new_tokens} new ones that is more than "
                f"the {limit} positions of the model. Shorten it, or give a smaller max_new_tokens."
            )


def _continue(
    model: Generating,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    max_new_tokens: int,
) -> torch.Tensor:
    """New token ids (prompts, at most `max_new_tokens`), padded on the right after an EOS token."""
    reads_first = bool(model.config.is_encoder_decoder)
    side = "right" if reads_first else "left"
    batch = tokenizer.pad({"input_ids": list(ids)}, padding_side=side, return_tensors="pt")
    device, generating = next(model.parameters()).device, cast(Any, model)
    model.eval()
    with torch.inference_mode():
        found: torch.Tensor = generating.generate(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=_ends(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
    prompts = 0 if reads_first else batch["input_ids"].shape[1]
    return found[:, prompts:].cpu()


def _ends(model: Generating, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that ended every text in training, and those that the base ends its texts with."""
    own = model.generation_config.eos_token_id
    known = own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *(token for token in known if token is not None)})
