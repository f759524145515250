"""Proof of a cut: on a padded batch the gated model and the cut model must agree, layer by layer."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.anatomy import base_of, layer_modules
from lightpeft.calls import without_labels
from lightpeft.errors import AnatomyError, VerificationError
from lightpeft.estimation import fixed_gates
from lightpeft.surgery.inputs import random_batch
from lightpeft.wrapping import added_parameters

TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Largest difference allowed, relative to the largest value of the tensor (at least 1)."""

ROWS = 2
"""Of a batch that are verified on: the longest and the shortest. More would take memory and show no more."""

LOGITS = 64
"""Tokens whose logits are compared: there are many of them, and the layers below were compared at all."""

Batch = Mapping[str, Tensor]


def padded_batch(model: nn.Module, batch: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Two rows of `batch` without labels and, where it is text, one of them padded; random if there is none.

    Raises:
        AnatomyError: the batch has no input that the model is known to take.
    """
    base = base_of(model)
    device = next(base.parameters()).device
    if batch is None:
        batch = random_batch(base)
    inputs = {
        name: value.detach()
        for name, value in without_labels(base, batch).items()
        if isinstance(value, Tensor) and name not in ("label", "label_ids", "return_loss")
    }
    if base.main_input_name not in inputs and "inputs_embeds" not in inputs:
        raise AnatomyError(
            f"the cut is verified on a training batch, but the model was called with {sorted(inputs)}, "
            f"without {base.main_input_name}. Call it as model(**batch), with {base.main_input_name} among "
            "the tensors of the batch."
        )
    inputs = {name: value.to(device, copy=True) for name, value in few_rows(inputs).items()}
    text = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if text is not None:
        tokens = text.shape[1]
        mask = inputs.setdefault("attention_mask", text.new_ones(text.shape[:2], dtype=torch.int64))
        if mask.dim() == 2 and mask.shape[1] > tokens:  # of a prefix too, which the base alone has not
            mask = inputs["attention_mask"] = mask[:, -tokens:].contiguous()
        if mask.dim() == 2 and bool(mask.all()) and mask.shape[1] > 1:
            mask[0, max(1, mask.shape[1] * 2 // 3) :] = 0
    return inputs


def labelled(inputs: Batch, batch: Mapping[str, Any] | None) -> Batch:
    """What of `batch` the model takes, with its labels and all of its rows; `inputs` if there is no batch.

    Args:
        inputs: what `padded_batch` made of it.
    """
    device = next(iter(inputs.values())).device
    found = {
        name: value.detach().to(device)
        for name, value in (batch or {}).items()
        if isinstance(value, Tensor) and (name in inputs or name == "labels")
    }
    return found or inputs


def few_rows(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The longest row and the shortest, where every tensor but single numbers has one entry per row."""
    counts = {len(value) for value in inputs.values() if value.dim()}
    if len(counts) != 1 or (count := counts.pop()) <= ROWS:
        return inputs
    mask = inputs.get("attention_mask", torch.ones(count, 1))
    lengths = mask.flatten(1).ne(0).sum(1)
    chosen = torch.stack([lengths.argmax(), lengths.argmin()])
    if int(lengths.max()) == int(lengths.min()):
        chosen = torch.arange(ROWS)
    return {name: value[chosen.to(value.device)] if value.dim() else value for name, value in inputs.items()}


def observe(model: nn.Module, batch: Batch, gates: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Outputs of every layer and of the model in eval mode, at the tokens that are not padding.

    Args:
        gates: fixed gates per module (relative to the base) to multiply inputs by.
    """
    seen: dict[str, Tensor] = {}
    entered: list[str] = []
    base, mask = base_of(model), batch.get("attention_mask")
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(fixed_gates(base, gates or {}))
        for name, layer in layer_modules(model):
            stack.callback(layer.register_forward_pre_hook(_entering(entered, name)).remove)
            stack.callback(layer.register_forward_hook(_noting(seen, name, mask)).remove)
        stack.enter_context(as_computed(base))
        outputs = _run(base, batch, entered)
    if "logits" in outputs:
        seen["the logits"] = unpadded(outputs["logits"].detach(), mask, LOGITS)
    return seen


def unpadded(value: Tensor, mask: Tensor | None, most: int | None = None) -> Tensor:
    """The entries of tokens that are not padding, at most so many; everything, where there are no tokens.

    Args:
        mask: (examples, tokens), not zero where there is a token.
    """
    if mask is None or value.shape[: mask.dim()] != mask.shape:
        return value
    places = mask.nonzero()
    if most is not None:
        places = places[:: max(1, len(places) // most)]
    return value[tuple(places.T)]


def as_computed(base: nn.Module) -> torch.autocast:
    """No autocast, whose rounding would hide or fake a difference, unless the base needs it: one whose own
    parameters have several dtypes (bfloat16 with norms or a head in float32) runs in no other way."""
    device, narrow = next(base.parameters()).device.type, narrowest_dtype(base)
    mixed = not is_of_one_dtype(base) and torch.finfo(narrow).bits == 16
    if not mixed:
        return torch.autocast(device, enabled=False)
    return torch.autocast(device, dtype=narrow, cache_enabled=False)  # the weights are about to change


def narrowest_dtype(base: nn.Module) -> torch.dtype:
    """The least exact dtype among the parameters of the base, PEFT's own not counted."""
    return max(_dtypes(base), key=lambda dtype: TOLERANCES.get(dtype, 0.0))


def is_of_one_dtype(base: nn.Module) -> bool:
    """Whether all parameters of the base have the same dtype, PEFT's own not counted."""
    return len(_dtypes(base)) == 1


def _dtypes(base: nn.Module) -> set[torch.dtype]:
    added = {id(parameter) for parameter in added_parameters(base)}
    found = {p.dtype for p in base.parameters() if p.dtype.is_floating_point and id(p) not in added}
    return found or {torch.float32}


def _run(base: nn.Module, batch: Batch, entered: list[str]) -> Any:
    try:
        return base(**batch)
    except (RuntimeError, ValueError, IndexError) as error:
        where = entered[-1] if entered else "below the layers"
        raise VerificationError(f"{where}: the model does not run: {error}") from error


def largest_difference(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> float:
    """Check that two observations agree; the largest relative difference.

    Args:
        dtype: the least exact one that was computed in, if not that of the outputs.

    Raises:
        VerificationError: they differ beyond the dtype's tolerance; names the first place.
    """
    worst = 0.0
    for name, before in expected.items():
        _require_finite(before, name)
        after = found[name]
        scale = max(1.0, float(before.abs().max()))
        difference = float((before - after).abs().max()) / scale
        limit = max(TOLERANCES[before.dtype], TOLERANCES.get(dtype or before.dtype, 0.0))
        if not difference <= limit:
            raise VerificationError(
                f"{name} of the cut model differs from the gated model by {difference:.2g} (allowed for "
                f"{before.dtype}: {limit:g}). This is a fault of lightpeft's anatomy of this architecture, "
                "please report it."
            )
        worst = max(worst, difference)
    return worst


def _require_finite(values: Tensor, name: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise VerificationError(
            f"{name} puts out values that are not finite before anything is cut: the run has diverged. Lower "
            "the learning rate or lengthen the warm-up; in float16, train in bfloat16 or float32 instead."
        )


def _entering(entered: list[str], name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any) -> None:
        entered.append(name)

    return hook


def _noting(seen: dict[str, Tensor], name: str, mask: Tensor | None) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        seen[name] = unpadded(value.detach(), mask)

    return hook


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; every module's mode as it was afterwards."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every module's mode as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
