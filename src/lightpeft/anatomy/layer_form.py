"""How a layer takes and returns its hidden states, learned from one call of it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

Source = int | str | None
"""The position or the name of an argument that is handed on; None for None."""


@dataclass(frozen=True)
class LayerForm:
    """In which form a layer returns its hidden states, and what else it returns."""

    rest: tuple[Source, ...] | None
    """What follows the hidden states in a tuple, None for what the layer makes; without a tuple None."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> "LayerForm":
        """Learn it from a call."""
        if isinstance(output, Tensor):
            return cls(None)
        given: dict[int, int | str] = {id(value): where for where, value in enumerate(args)}
        given |= {id(value): where for where, value in kwargs.items()}
        return cls(tuple(None if value is None else given.get(id(value)) for value in output[1:]))

    def made_in(self, output: Any) -> list[Any]:
        """What of an output in this form the layer was not given."""
        more = () if self.rest is None else output[1:]
        sources = zip(more, self.rest or (), strict=True)
        return [value for value, source in sources if source is None and value is not None]

    def filled(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the layer would return in a call with these arguments, with other hidden states."""
        if self.rest is None:
            return hidden
        return (hidden, *(_at(source, args, kwargs) for source in self.rest))


def _at(source: Source, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if source is None:
        return None
    if isinstance(source, str):
        return kwargs.get(source)
    return args[source] if source < len(args) else None


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a layer returns."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a layer returns, with other hidden states."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


def hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a layer is given."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
