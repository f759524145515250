"""The last layer for the first token alone, where the head reads no other.

BERT's pooler and the heads of RoBERTa, MPNet or ViT take the first token's state. What the last layer does
with the others above its attention is read by nothing then, in training as in inference: there the output
projection and the FFN run for one token, and the logits are the same.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightpeft.anatomy import base_of, find_anatomy, hidden_of, with_hidden
from lightpeft.calls import inputs_by_name, recorded
from lightpeft.errors import VerificationError
from lightpeft.surgery.record import WHEN_CUT, record_of
from lightpeft.surgery.verify import as_computed, evaluating, few_rows, largest_difference

_HOOKS = "lightpeft_first_token"
_MISFITS = (RuntimeError, ValueError, IndexError, VerificationError)
"""What comes of a model that cannot run on one token, or puts out something else then."""


class FirstToken:
    """Hooks that narrow a layer, in calls of the whole model; whoever calls a part of it gets all."""

    def __init__(
        self, layer: nn.Module, linears: Iterable[nn.Module], base: nn.Module | None = None, name: str = ""
    ) -> None:
        """Put them in.

        Args:
            linears: those of the layer that take each token for itself.
            base: the whole model; without it the layer is narrowed in every call.
            name: of the layer in the whole model.
        """
        self._narrows, self._name = base is None, name
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
        return cls(base.get_submodule(last), linears, base, last)

    def remove(self) -> None:
        """Let the last layer run for all tokens again."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Not where the states of all tokens are handed out, or layers run once more in the backward pass."""
        records = recorded(model, inputs_by_name(model, args, kwargs)) is not None
        self._narrows = not records and not repeats_layer(model, self._name)

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
        return with_hidden(output, hidden[:, :1])


def can_narrow(model: nn.Module, batch: Mapping[str, Any], skipped: Collection[str] = ()) -> bool:
    """Whether all that the model puts out depends on the first token's state alone, and stays what it is.

    The first is asked of the gradient of a random sum of logits and loss with regard to the last layer's
    output, which is exactly zero where nothing is read.

    Args:
        batch: arguments of the model, best with labels, for a loss that reads more than the logits do.
        skipped: modules of layers that do not run.
    """
    base = base_of(model)
    inputs = few_rows({name: value for name, value in batch.items() if isinstance(value, Tensor)})
    if base.config.is_encoder_decoder or not _has_room(inputs, base.main_input_name):
        return False
    with evaluating(base), as_computed(base):
        try:
            if not _reads_first_token(base, last_layer(model, skipped), inputs):
                return False
            expected = base(**inputs)
            with narrowed(model, skipped):
                largest_difference(expected, base(**inputs))
        except _MISFITS:
            return False
    return True


@contextmanager
def narrowed(model: nn.Module, skipped: Collection[str] = ()) -> Iterator[None]:
    """Narrow a model for the time of the context."""
    hooks = FirstToken.of(model, skipped)
    try:
        yield
    finally:
        hooks.remove()


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


def repeats_layer(model: nn.Module, layer: str) -> bool:
    """Whether gradient checkpointing would run a layer in the backward pass, with no call of the model.

    The flag is the layer's own or that of what calls it, so one need not look through the whole model.
    """
    base = base_of(model)
    parts = layer.split(".")
    path = [base, *(base.get_submodule(".".join(parts[: end + 1])) for end in range(len(parts)))]
    return base.training and any(getattr(one, "gradient_checkpointing", False) for one in path)


def above_attention(model: nn.Module, layer: str) -> list[str]:
    """The linears of a layer that take each token for itself, and whose outputs no attention reads."""
    parts = find_anatomy(model).parts_of(layer)
    names = [one.attention.out for one in parts if one.attention is not None]
    return names + [name for one in parts if one.ffn is not None for name in one.ffn.linears[:-1]]


def _reads_first_token(base: nn.Module, layer: str, batch: Mapping[str, Tensor]) -> bool:
    states: list[Tensor] = []

    def track(_layer: nn.Module, _args: Any, output: Any) -> Any:
        states.append(hidden_of(output).detach().requires_grad_())
        return with_hidden(output, states[-1])

    handle = base.get_submodule(layer).register_forward_hook(track)
    try:
        with torch.enable_grad():
            outputs = base(**batch)
            if "logits" not in outputs or not all(map(_is_floating, outputs.values())):
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


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _has_room(batch: Mapping[str, Tensor], main: str) -> bool:
    """Whether there is an example of more than one token, at which there is something to see."""
    mask = batch.get("attention_mask")
    return main in batch and (mask is None or mask.dim() != 2 or bool((mask.sum(1) > 1).any()))
