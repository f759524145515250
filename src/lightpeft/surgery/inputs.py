"""Random inputs of a model's kind, to verify a cut on where no real batch is at hand."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lightpeft.errors import AnatomyError

ROWS, TOKENS = 2, 16


def random_batch(base: PreTrainedModel, rows: int = ROWS, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Random tokens, pixels or sound, the same ones every time.

    Args:
        tokens: at most; fewer where the model has fewer positions.
    """
    generator = torch.Generator().manual_seed(0)
    batch = _main_input(base, generator, rows, tokens)
    if base.config.is_encoder_decoder:
        batch["decoder_input_ids"] = _tokens(base.config, generator, rows, tokens)
    if hasattr(base.config, "vision_config") and hasattr(base.config, "text_config"):
        batch["pixel_values"] = _pixels(base.config.vision_config, generator, rows)
    return batch


def _main_input(
    base: PreTrainedModel, generator: torch.Generator, rows: int, tokens: int
) -> dict[str, Tensor]:
    config, name = base.config, base.main_input_name
    if name == "pixel_values":
        return {name: _pixels(config, generator, rows)}
    if name == "input_features":
        frames = 2 * config.max_source_positions
        return {name: torch.randn(rows, config.num_mel_bins, frames, generator=generator)}
    if name == "input_values":
        return {name: torch.randn(rows, 8000, generator=generator)}
    ids = _tokens(config.get_text_config(), generator, rows, tokens)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _tokens(config: PreTrainedConfig, generator: torch.Generator, rows: int, tokens: int) -> Tensor:
    """Ids above the special ones, few enough for the model's positions."""
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_target_positions")]
    width = max(2, min([tokens, *(limit - 4 for limit in limits if limit is not None)]))
    return torch.randint(min(5, config.vocab_size - 1), config.vocab_size, (rows, width), generator=generator)


def _pixels(config: PreTrainedConfig, generator: torch.Generator, rows: int) -> Tensor:
    size = getattr(config, "image_size", None)
    if size is None:
        raise AnatomyError("the configuration does not say the size of an image; give a batch of the task.")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(rows, config.num_channels, height, width, generator=generator)
