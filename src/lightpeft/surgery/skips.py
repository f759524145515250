"""What stands in for an attention module that lost all of its heads."""

from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.anatomy import Units, linear_at
from lightpeft.linears import OUTPUTS, width


class SkippedAttention(nn.Module):
    """An attention block without heads: nothing is computed but the bias of its output projection.

    The linears stay children under their old names, with no channels left, so that names, state and a later
    look at the anatomy stay what they are.
    """

    def __init__(self, attention: nn.Module, units: Units) -> None:
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        for name, value in vars(attention).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self._returns = units.returns or 1
        self._head_size = units.size
        inside = units.out.startswith(f"{units.module}.")
        self._out = units.out.removeprefix(f"{units.module}.") if inside else None
        self.train(attention.training)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The block's output (batch, tokens, width), and None for everything else it would return."""
        self._count_tokens(hidden_states, kwargs)
        return (self._output(hidden_states), *([None] * (self._returns - 1)))

    def _output(self, hidden_states: Tensor) -> Tensor:
        if self._out is None:
            return hidden_states.new_zeros(*hidden_states.shape[:-1], 0)
        out = linear_at(self, self._out)
        nothing = hidden_states.new_zeros(*hidden_states.shape[:-1], width(out, OUTPUTS))
        return nothing if out.bias is None else nothing + out.bias

    def _count_tokens(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> None:
        """A key-value cache learns the length of a text from its layers, so it gets keys of no heads."""
        cache, index = kwargs.get("past_key_values"), getattr(self, "layer_idx", None)
        if cache is None or index is None or kwargs.get("key_value_states") is not None:
            return
        batch, tokens = hidden_states.shape[:2]
        empty = torch.empty(batch, 0, tokens, self._head_size, device=hidden_states.device)
        cache.update(empty.to(hidden_states), empty.to(hidden_states), index)
