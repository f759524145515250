"""The layers of a frozen prefix: their forward, what they return, and the way out after the last of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.training.prefix.stack import PAST

Run = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Called for a layer: its number, its own forward, arguments."""


class PassedOver:
    """The forward of a layer of the prefix."""

    def __init__(self, run: Run, number: int, layer: nn.Module) -> None:
        self._run, self._number, self._layer = run, number, layer
        self._before = vars(layer).get("forward")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._number, self._own, args, kwargs)

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        if self._before is not None:
            return self._before(*args, **kwargs)
        return type(self._layer).forward(self._layer, *args, **kwargs)


class Outputs:
    """In which form a layer returns its hidden states, and what else it returns."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.keeps_keys = kwargs.get(PAST) is not None
        self._sources: list[int | str | None] | None = None
        self.makes_more = False
        if not isinstance(output, Tensor):
            given: dict[int, int | str] = {id(value): where for where, value in enumerate(args)}
            given |= {id(value): where for where, value in kwargs.items()}
            rest = output[1:]
            self._sources = [None if value is None else given.get(id(value)) for value in rest]
            self.makes_more = any(
                value is not None and source is None
                for value, source in zip(rest, self._sources, strict=True)
            )

    def filled(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Any:
        """What the layer returns, with other hidden states."""
        if self._sources is None:
            return hidden
        if made is not None:
            return (hidden, *made[1:])
        return (hidden, *(_at(source, args, kwargs) for source in self._sources))


def _at(source: int | str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if source is None:
        return None
    return args[source] if isinstance(source, int) else kwargs[source]


class Reached(Exception):  # noqa: N818 - a way out of the stack, no error
    """The last layer of the prefix has run."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a layer returns."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


def hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a layer is given."""
    given = [*args, *kwargs.values()]
    return next(value for value in given if isinstance(value, Tensor))
