"""The layers of a frozen prefix: their forward, what they return, and the way out after the last of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightpeft.anatomy import LayerForm
from lightpeft.training.prefix.stack import PAST

Run = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Called for a layer: its number, its own forward, arguments."""


class PassedOver:
    """The forward of a layer of the prefix.

    Args:
        own: the one that the layer had; of a skipped layer that is no method of its class.
    """

    def __init__(self, run: Run, number: int, own: Callable[..., Any]) -> None:
        self._run, self._number, self._own = run, number, own

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._number, self._own, args, kwargs)


class Outputs:
    """In which form a layer returns its hidden states, and what else it returns."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.keeps_keys = kwargs.get(PAST) is not None
        self._form = LayerForm.of(args, kwargs, output)
        self.makes_more = bool(self._form.made_in(output))

    def filled(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Any:
        """What the layer returns, with other hidden states."""
        if made is not None and self._form.rest is not None:
            return (hidden, *made[1:])
        return self._form.filled(hidden, args, kwargs)


class Reached(Exception):  # noqa: N818 - a way out of the stack, no error
    """The last layer of the prefix has run."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden
