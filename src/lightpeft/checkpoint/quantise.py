"""Quantised bases: by the libraries that transformers quantises with while it loads a model.

What is stored is of the floats: those are cut, and quantised once, as stock models are. Cutting what is
quantised already would round a second time, in other blocks.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lightpeft.anatomy import base_of
from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.linears import Projection, is_plain_linear, is_quantised

_FAILURES = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, KeyError)
"""What a library that is missing, or cannot quantise here, raises."""

_SMALLEST = 32
"""Weights in a block of 4 bits. On CPUs bitsandbytes 0.50 reads other values than it wrote where the number
of inputs, which a cut changes, is no multiple of its usual 64: there blocks are smaller, or the linear stays
as it is."""

_REPACKS = "support_avx512bf16_for_cpu"
"""Of a linear in 4 bits: whether bitsandbytes, asked without gradients on a CPU, may pack its weight anew. It
goes on computing with that in training, where no gradient passes then, and rounds what it takes back."""


def quantisation_of(model: nn.Module) -> QuantizationConfigMixin | None:
    """How transformers quantised the base of `model`; None of a base of floats.

    Raises:
        ConfigError: it was quantised by somebody else, or nothing is known of the floats.
    """
    base = base_of(model)
    if not any(is_quantised(module) for module in base.modules()):
        return None
    config, quantiser = getattr(base.config, "quantization_config", None), getattr(base, "hf_quantizer", None)
    if not isinstance(config, QuantizationConfigMixin) or quantiser is None:
        raise ConfigError(
            f"this {type(base).__name__} has quantised weights, but transformers did not quantise them. "
            "Load it by from_pretrained(name, quantization_config=...): its floats have to be known, as they "
            "are what is cut."
        )
    if quantiser.pre_quantized:
        raise ConfigError(
            f"the weights of {base.config._name_or_path!r} are stored quantised. What is cut are floats: "
            "load the model that it was made from by from_pretrained(name, quantization_config=...)."
        )
    return config


@torch.no_grad()
def quantise(base: PreTrainedModel, config: QuantizationConfigMixin) -> None:
    """Quantise the linears of a base of floats in place, one by one, as `from_pretrained` would.

    Raises:
        CheckpointError: the library is missing, or cannot do this here.
    """
    floats = {name: one for name, one in base.named_modules() if is_plain_linear(one)}
    device = next(base.parameters()).device
    try:
        quantiser = AutoHfQuantizer.from_config(config, pre_quantized=False)
        quantiser.validate_environment(device_map={"": device})
        quantiser.preprocess_model(base, device_map={"": device}, dtype=base.config.dtype)
        operation = quantiser.get_quantize_ops()
        for name in list(floats):
            _quantise_one(base, name, floats.pop(name), quantiser, operation)
        quantiser.postprocess_model(base)
        keep_packing(base)
    except _FAILURES as error:
        raise CheckpointError(
            f"{type(config).__name__} cannot quantise the cut base here: {error}. Load it without "
            "quantization_config, or with another one."
        ) from error
    base.hf_quantizer = quantiser


def keep_packing(model: nn.Module) -> None:
    """Let quantised linears compute in training, after an evaluation too, what they are meant to."""
    for module in model.modules():
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)


def _quantise_one(
    base: PreTrainedModel, name: str, linear: Projection, quantiser: Any, operation: Any
) -> None:
    """What came in the place of `linear`, or `linear` itself, gets its weight, hooks and bias."""
    new: Any = base.get_submodule(name)
    weight = f"{name}.weight"
    if not quantiser.param_needs_quantization(base, weight):
        return
    value = linear.weight.detach()
    blocks = getattr(new.weight, "blocksize", None)
    if blocks is not None and value.device.type == "cpu" and new.in_features % blocks:
        if new.in_features % _SMALLEST:
            base.set_submodule(name, linear)
            return
        new.weight.blocksize = _SMALLEST
    found = operation.convert({weight: [value]}, model=base, full_layer_name=weight, missing_keys=set())
    for tensor in found.values():
        new.weight = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    new.weight.requires_grad_(False)
    if linear.bias is not None:
        new.bias = linear.bias
    new._forward_hooks.update(linear._forward_hooks)
    new._forward_pre_hooks.update(linear._forward_pre_hooks)
    new.train(linear.training)
