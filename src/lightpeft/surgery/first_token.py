"""The last layer for the first token alone, where the head reads no other.

BERT's pooler and the heads of RoBERTa, MPNet or ViT take the first token's state. What the last layer does
with the others above its attention is read by nothing then, in training as in inference: there the output
projection and the FFN run for one token, and the logits are the same.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightpeft.anatomy import base_of, find_anatomy, hidden_of
from lightpeft.calls import inputs_by_name, recorded
from lightpeft.surgery.record import WHEN_CUT, record_of
from lightpeft.surgery.verify import TOLERANCES, as_computed, evaluating

_HOOKS = "lightpeft_first_token"
_RUN = (RuntimeError, ValueError, IndexError)
"""What a model raises whose tensors do not fit."""

ROWS = 4
"""Of a batch that are looked at."""


class FirstToken:
    """Hooks that narrow a layer, in calls of the whole model; whoever calls a part of it gets all."""

    def __init__(self, layer: nn.Module, linears: Iterable[nn.Module], base: nn.Module | None = None) -> None:
        """Put them in.

        Args:
            linears: those of the layer that take each token for itself.
            base: the whole model; without it the layer is narrowed in every call.
        """
        self._narrows = base is None
        self._handles: list[RemovableHandle] = [
            layer.register_forward_hook(self._narrow_output),
            *(linear.register_forward_pre_hook(self._narrow_input) for linear in linears),
        ]
        if base is not None:
            self._handles += [
                base.register_forward_pre_hook(self._enter, with_kwargs=True),
                base.register_forward_hook(self._leave, always_call=True),
            ]

    @classmethod
    def of(cls, model: nn.Module, skipped: Collection[str] = ()) -> "FirstToken":
        """For the last layer of a model, those of `skipped` left out."""
        base, last = base_of(model), last_layer(model, skipped)
        linears = [base.get_submodule(name) for name in above_attention(model, last)]
        return cls(base.get_submodule(last), linears, base)

    def remove(self) -> None:
        """Let the last layer run for all tokens again."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Not where the states of all tokens are handed out, or layers run once more in the backward pass."""
        self._narrows = (
            not repeats_layers(model) and recorded(model, inputs_by_name(model, args, kwargs)) is None
        )

    def _leave(self, _model: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        self._narrows = False

    def _narrow_input(self, _linear: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Of (examples, tokens, channels) the first token's."""
        if not self._narrows or args[0].dim() != 3:
            return None
        return (args[0][:, :1].contiguous(), *args[1:])

    def _narrow_output(self, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """So that nobody takes for another token's state what was made without its FFN."""
        hidden = hidden_of(output)
        if not self._narrows or hidden.dim() != 3:
            return None
        return _with_hidden(output, hidden[:, :1])


def can_narrow(model: nn.Module, batch: Mapping[str, Any], skipped: Collection[str] = ()) -> bool:
    """Whether all that the model puts out depends on the first token's state alone, and stays what it is.

    The first is asked of the gradient of a random sum of logits and loss with regard to the last layer's
    output, which is exactly zero where nothing is read.

    Args:
        batch: arguments of the model, best with labels, for a loss that reads more than the logits do.
        skipped: modules of layers that do not run.
    """
    base, inputs = base_of(model), _few_rows(batch)
    if base.config.is_encoder_decoder or not _has_room(inputs, base.main_input_name):
        return False
    with evaluating(base), as_computed(base):
        try:
            if not _reads_first_token(base, last_layer(model, skipped), inputs):
                return False
            expected, hooks = base(**inputs), FirstToken.of(model, skipped)
            try:
                return _agree(base(**inputs), expected)
            finally:
                hooks.remove()
        except _RUN:
            return False


def narrow(model: nn.Module) -> None:
    """Narrow a model as its record says; call it again after PEFT has wrapped or unwrapped linears."""
    base, record = base_of(model), record_of(model)
    before = getattr(base, _HOOKS, None)
    if before is not None:
        before.remove()
    if record is not None and record.first_token:
        setattr(base, _HOOKS, FirstToken.of(model, record.skipped))


WHEN_CUT.append(narrow)


def last_layer(model: nn.Module, skipped: Collection[str] = ()) -> str:
    """The module of the last layer that runs, relative to the base."""
    return next(name for name in reversed(find_anatomy(model).modules) if name not in skipped)


def repeats_layers(model: nn.Module) -> bool:
    """Whether gradient checkpointing would run layers in the backward pass, with no call of the model."""
    return model.training and any(getattr(one, "gradient_checkpointing", False) for one in model.modules())


def above_attention(model: nn.Module, layer: str) -> list[str]:
    """The linears of a layer that take each token for itself, and whose outputs no attention reads."""
    parts = find_anatomy(model).parts_of(layer)
    names = [one.attention.out for one in parts if one.attention is not None]
    return names + [name for one in parts if one.ffn is not None for name in one.ffn.linears[:-1]]


def _reads_first_token(base: nn.Module, layer: str, batch: Mapping[str, Tensor]) -> bool:
    states: list[Tensor] = []

    def track(_layer: nn.Module, _args: Any, output: Any) -> Any:
        states.append(hidden_of(output).detach().requires_grad_())
        return _with_hidden(output, states[-1])

    handle = base.get_submodule(layer).register_forward_hook(track)
    try:
        with torch.enable_grad():
            outputs = base(**batch)
            if "logits" not in outputs or not all(isinstance(value, Tensor) for value in outputs.values()):
                return False  # hands out states of layers, or a cache
            grad = _gradient(outputs.values(), states)
    finally:
        handle.remove()
    if grad is None or grad.dim() != 3:
        return False
    reads = grad.abs().amax(2) > 0
    return reads.shape[1] > 1 and bool(reads[:, 0].all()) and not bool(reads[:, 1:].any())


def _gradient(outputs: Iterable[Tensor], states: list[Tensor]) -> Tensor | None:
    """Of a random sum, with regard to the one state there is; None where it says nothing."""
    generator = torch.Generator().manual_seed(0)
    sums = [
        (value * torch.randn(value.shape, generator=generator).to(value)).sum()
        for value in outputs
        if value.requires_grad
    ]
    if not sums or len(states) != 1:
        return None
    found: Tensor | None = torch.autograd.grad(sums, states, allow_unused=True)[0]
    return found


def _few_rows(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    count = max((len(value) for value in tensors.values() if value.dim()), default=0)
    return {
        name: value[:ROWS] if value.dim() and len(value) == count else value
        for name, value in tensors.items()
    }


def _has_room(batch: Mapping[str, Tensor], main: str) -> bool:
    """Whether there is an example of more than one token, at which there is something to see."""
    mask = batch.get("attention_mask")
    return main in batch and (mask is None or mask.dim() != 2 or bool((mask.sum(1) > 1).any()))


def _agree(found: Any, expected: Any) -> bool:
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        limit = TOLERANCES.get(value.dtype, 0.0) * scale
        if not float((found[name] - value).abs().max()) <= limit:
            return False
    return True


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])
