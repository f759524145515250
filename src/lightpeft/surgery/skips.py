"""What stands in for an attention module that lost all of its heads."""

from typing import Any

from torch import Tensor, nn

from lightpeft.anatomy import Units, linear_at
from lightpeft.linears import OUTPUTS, width
from lightpeft.surgery.skipped_layer import count_tokens, number_in_cache


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
        cache, index = kwargs.get("past_key_values"), number_in_cache(self)
        if cache is not None and index is not None and kwargs.get("key_value_states") is None:
            count_tokens(cache, index, hidden_states)
