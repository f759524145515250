"""The lowest layers that nothing trains, the stack that calls them, and what a call of that says."""

import inspect
import itertools
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lightpeft.anatomy import base_of, lowest_stack
from lightpeft.calls import recorded
from lightpeft.training.prefix.examples import UnknownInputError

PAST = "past_key_values"


def frozen_layer_names(model: nn.Module) -> tuple[str, ...]:
    """The lowest layers (of an encoder-decoder: of the encoder) in which nothing is trained, by name."""
    base = base_of(model)
    return tuple(
        itertools.takewhile(
            lambda name: not any(p.requires_grad for p in base.get_submodule(name).parameters()),
            lowest_stack(base),
        )
    )


def stack_of(base: PreTrainedModel, layer: str) -> PreTrainedModel:
    """The innermost transformers model around a layer that is given the examples themselves."""
    parent = layer
    while parent:
        parent = parent.rpartition(".")[0]
        module = base.get_submodule(parent)
        if (
            isinstance(module, PreTrainedModel)
            and main_input(module) in inspect.signature(module.forward).parameters
        ):
            return module
    return base


def main_input(stack: nn.Module) -> str:
    """The argument that a model reads first."""
    return str(getattr(stack, "main_input_name", "input_ids"))


def require_constant(stack: nn.Module, inputs: dict[str, Any]) -> None:
    """Refuse calls in which what the layers put out is needed one by one, or is not the same each time.

    Raises:
        UnknownInputError: says why.
    """
    trained = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad]
    if trained:
        raise UnknownInputError(f"{trained[0]} is computed by something that is trained")
    if PAST in inputs:
        raise UnknownInputError("keys and values of earlier tokens are handed in")
    reads = recorded(stack, inputs)
    if reads is not None:
        raise UnknownInputError(f"{reads} is set, which reads every layer")
    config = getattr(stack, "config", None)
    masks = any(getattr(config, f"mask_{what}_prob", 0) for what in ("time", "feature"))
    if stack.training and masks and getattr(config, "apply_spec_augment", False):
        raise UnknownInputError("SpecAugment masks the inputs anew each time (config.apply_spec_augment)")
