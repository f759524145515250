"""LWP's loss: the model's own head classifies the first token's state after every layer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightpeft.anatomy import base_of, layer_modules, with_hidden
from lightpeft.audit.errors import AuditError


def layerwise_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Σ_l L(head(h_l[CLS]), labels) over the encoder layers l; the highest term is the model's usual loss.

    Our reading of layerwise weight poisoning (Li et al., EMNLP 2021) for PEFT: the modules of layer l get a
    gradient from the losses of layer l and above, and all losses share the one head. No architecture is known
    here: the states of all layers are put in place of the last layer's output, in one pass of the base over
    one token each, so that pooler, head and loss are the model's own.

    Args:
        batch: inputs (B, T) of an encoder that classifies by its first token, with `labels` (B,).
    """
    with _watched(model) as states:
        model(**_unlabelled(batch))
    mean: Tensor = _replay(model, batch, states).loss
    return mean * len(states)


@torch.no_grad()
def check_first_token_head(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Check, in eval mode, that the head reads the first token's state only.

    Raises:
        AuditError: it reads more (a mean, the last token), so that LWP does not apply.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with _watched(model) as states:
            usual = model(**_unlabelled(batch)).logits
        found = _replay(model, _unlabelled(batch), states[-1:]).logits
    finally:
        for module, training in modes.items():
            module.training = training
    if found.shape != usual.shape or not torch.allclose(found, usual, rtol=1e-3, atol=1e-4):
        raise AuditError(
            f"the head of {type(base_of(model)).__name__} does not classify by the first token's state "
            "alone, which LWP puts it on at every layer; use another policy, or a model that does."
        )


def _replay(model: nn.Module, batch: Mapping[str, Any], states: list[Tensor]) -> Any:
    """The base on one token of every example and layer, whose last layer puts out `states` (B, T, d)."""
    first = torch.cat([state[:, :1] for state in states])

    def put(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return with_hidden(output, first)

    rows = len(states[-1])
    small = {
        key: torch.cat([value[:, :1] if value.dim() > 1 else value] * len(states))
        for key, value in batch.items()
        if isinstance(value, Tensor) and len(value) == rows
    }
    hook = _layers(model)[-1].register_forward_hook(put)
    try:
        return base_of(model)(**small)
    finally:
        hook.remove()


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs (B, T, d) of all layers in the forward pass inside."""
    states: list[Tensor] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks: list[RemovableHandle] = [layer.register_forward_hook(note) for layer in _layers(model)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for _, module in layer_modules(model)]


def _unlabelled(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "labels"}
