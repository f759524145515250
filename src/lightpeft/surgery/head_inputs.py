"""Arguments of attention modules that have one value per head: sliced for a cut module, handed on whole."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.anatomy import HeadInput, Units
from lightpeft.edits import Journal, index_tensor


def slice_head_inputs(module: nn.Module, units: Units, kept: tuple[int, ...], journal: Journal) -> None:
    """Make `module` take its per-head arguments for all heads and use those of the heads `kept`."""
    for argument in units.head_inputs:
        slicer = _Slicer(argument, units.count, index_tensor(kept), module)
        journal.add_hook(module.register_forward_pre_hook(slicer.narrow, with_kwargs=True))
        if argument.returned_at is not None:
            journal.add_hook(module.register_forward_hook(slicer.hand_on))


class _Slicer:
    def __init__(self, argument: HeadInput, heads: int, kept: Tensor, module: nn.Module) -> None:
        self._argument, self._heads, self._kept = argument, heads, kept
        self._names = list(inspect.signature(module.forward).parameters)
        self._received: Tensor | None = None

    def narrow(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the kept heads' values."""
        named = dict(zip(self._names, args, strict=False)) | kwargs
        self._received = named.get(self._argument.name)
        if self._received is None:
            return args, kwargs
        position = self._names.index(self._argument.name)
        sliced = self._slice(self._received)
        if position < len(args):
            return (*args[:position], sliced, *args[position + 1 :]), kwargs
        return args, kwargs | {self._argument.name: sliced}

    def hand_on(self, module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        """The output with what was received, for the layers above."""
        at = self._argument.returned_at
        assert at is not None
        return (*output[:at], self._received, *output[at + 1 :])

    def _slice(self, value: Tensor) -> Tensor:
        """(batch, heads, queries, keys), or (batch · heads, queries, keys) as ALiBi comes."""
        kept = self._kept.to(value.device)
        if value.dim() == 4:
            return value if value.shape[1] == 1 else value.index_select(1, kept)
        apart = value.unflatten(0, (-1, self._heads))
        return torch.flatten(apart.index_select(1, kept), 0, 1)
