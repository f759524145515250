"""Proof of a cut: on a padded batch the gated model and the cut model must agree, layer by layer."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.anatomy import base_of, layer_modules
from lightpeft.errors import AnatomyError, VerificationError
from lightpeft.estimation import fixed_gates
from lightpeft.surgery.inputs import random_batch

TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Largest difference allowed, relative to the largest value of the tensor (at least 1)."""

Batch = Mapping[str, Tensor]


def padded_batch(model: nn.Module, batch: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """`batch` without labels and, where it is text, with at least one padded row; random if there is none."""
    base = base_of(model)
    device = next(base.parameters()).device
    if batch is None:
        batch = random_batch(base)
    inputs = {
        name: value.detach().clone().to(device)
        for name, value in batch.items()
        if isinstance(value, Tensor) and name not in ("label", "label_ids", "return_loss")
    }
    if not base.config.is_encoder_decoder or "decoder_input_ids" in inputs:
        inputs.pop("labels", None)
    if base.main_input_name not in inputs and "inputs_embeds" not in inputs:
        raise AnatomyError(
            f"the verification batch has {sorted(inputs)}, but no {base.main_input_name}; give a batch of "
            "the task."
        )
    text = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if text is not None:
        tokens = text.shape[1]
        mask = inputs.setdefault("attention_mask", text.new_ones(text.shape[:2], dtype=torch.int64))
        if mask.dim() == 2 and mask.shape[1] > tokens:  # of a prefix too, which the base alone has not
            mask = inputs["attention_mask"] = mask[:, -tokens:].contiguous()
        if mask.dim() == 2 and bool(mask.all()) and mask.shape[1] > 1:
            mask[0, max(1, mask.shape[1] * 2 // 3) :] = 0
    return inputs


def observe(model: nn.Module, batch: Batch, gates: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Outputs of every layer and of the model in eval mode, at the tokens that are not padding.

    Args:
        gates: fixed gates per module (relative to the base) to multiply inputs by.
    """
    seen: dict[str, Tensor] = {}
    entered: list[str] = []
    base = base_of(model)
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        stack.enter_context(fixed_gates(base, gates or {}))
        for name, layer in layer_modules(model):
            stack.callback(layer.register_forward_pre_hook(_entering(entered, name)).remove)
            stack.callback(layer.register_forward_hook(_noting(seen, name)).remove)
        # accelerate wraps the outer forward in autocast, whose rounding would hide or fake a difference.
        stack.enter_context(torch.autocast(next(base.parameters()).device.type, enabled=False))
        outputs = _run(base, batch, entered)
    if "logits" in outputs:
        seen["the logits"] = outputs["logits"].detach()
    if "attention_mask" not in batch:
        return seen
    tokens = batch["attention_mask"].bool()
    return {
        name: value[tokens] if value.shape[: tokens.dim()] == tokens.shape else value
        for name, value in seen.items()
    }


def _run(base: nn.Module, batch: Batch, entered: list[str]) -> Any:
    try:
        return base(**batch)
    except (RuntimeError, ValueError, IndexError) as error:
        where = entered[-1] if entered else "below the layers"
        raise VerificationError(f"{where}: the model does not run: {error}") from error


def largest_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Check that two observations agree; the largest relative difference.

    Raises:
        VerificationError: they differ beyond the dtype's tolerance; names the first place.
    """
    worst = 0.0
    for name, before in expected.items():
        after = found[name]
        scale = max(1.0, float(before.abs().max()))
        difference = float((before - after).abs().max()) / scale
        limit = TOLERANCES[before.dtype]
        if not difference <= limit:
            raise VerificationError(
                f"{name} of the cut model differs from the gated model by {difference:.2g} (allowed for "
                f"{before.dtype}: {limit:g}). This is a fault of lightpeft's anatomy of this architecture, "
                "please report it."
            )
        worst = max(worst, difference)
    return worst


def _entering(entered: list[str], name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any) -> None:
        entered.append(name)

    return hook


def _noting(seen: dict[str, Tensor], name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen[name] = (output[0] if isinstance(output, tuple) else output).detach()

    return hook


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
