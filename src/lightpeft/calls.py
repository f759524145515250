"""What a call of a transformers model asks for."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_RECORDED = ("output_hidden_states", "output_attentions")


def inputs_by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, without those that are None."""
    bound = inspect.signature(model.forward).bind_partial(*args, **kwargs)
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        more = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        given |= value if more else {name: value}
    return {name: value for name, value in given.items() if value is not None}


def recorded(model: nn.Module, inputs: dict[str, Any]) -> str | None:
    """The option by which a call collects what every layer puts out, if one is set."""
    config = getattr(model, "config", None)
    return next((name for name in _RECORDED if inputs.get(name, getattr(config, name, False))), None)


def without_labels(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a forward pass of inference takes of a training batch.

    An encoder-decoder is left its labels where they are what its decoder reads.
    """
    reads = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    keep = reads and "decoder_input_ids" not in batch and "decoder_inputs_embeds" not in batch
    return {name: value for name, value in batch.items() if name != "labels" or keep}
