"""Running sums on the device over the second half of the steps, whenever that is asked for."""

import functools
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

Sums = dict[str, Tensor]


class WindowSums:
    """Named vectors summed over optimizer steps. Nothing here synchronises with the device.

    Sums are kept in blocks of steps, and a block goes once all of it lies in the first half. So the window,
    which is all blocks that are left, is exactly the second half where that begins with a block, and
    otherwise begins with the block that the second half begins in.

    Args:
        sizes: how long each vector is.
        whole: vectors that are summed once; of the others the even and the odd steps are kept apart.
        starts: after how many steps a block begins.
    """

    def __init__(
        self, sizes: Mapping[str, int], whole: Collection[str], starts: Collection[int], device: torch.device
    ) -> None:
        self._shapes = {name: (size,) if name in whole else (2, size) for name, size in sizes.items()}
        self._starts, self._device = frozenset(starts), device
        self.steps = 0
        """Steps that were taken."""
        self._blocks: dict[int, Sums] = {0: self._zeros()}

    @property
    def window_start(self) -> int:
        """How many of the first steps the window leaves out."""
        return min(self._blocks)

    def current(self, name: str) -> Tensor:
        """What this step is added to, (size,)."""
        sums = self._blocks[max(self._blocks)][name]
        return sums if sums.dim() == 1 else sums[self.steps % 2]

    def end_step(self) -> None:
        """The next step begins."""
        self.steps += 1
        if self.steps in self._starts:
            self._blocks[self.steps] = self._zeros()
        started = [start for start in self._blocks if start <= self.steps // 2]
        for start in started[:-1]:
            del self._blocks[start]

    def window(self) -> Sums:
        """Sums over the window, on the CPU: (size,), or (2, size) over its even and its odd steps."""
        return {
            name: functools.reduce(torch.add, (block[name] for block in self._blocks.values())).cpu()
            for name in self._shapes
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | list[int]]]:
        """All blocks as named tensors, and a JSON header."""
        tensors = {
            f"block.{start}.{name}": values
            for start, block in self._blocks.items()
            for name, values in block.items()
        }
        return tensors, {"steps": self.steps, "starts": list(self._blocks)}

    def restore(self, tensors: Mapping[str, Tensor], steps: int, starts: list[int]) -> None:
        """Go on from what `state` gave; raises KeyError or RuntimeError if something else was summed."""
        self.steps = steps
        self._blocks = {start: self._zeros() for start in starts}
        for start, block in self._blocks.items():
            for name, values in block.items():
                values.copy_(tensors[f"block.{start}.{name}"])

    def _zeros(self) -> Sums:
        return {
            name: torch.zeros(shape, dtype=torch.float32, device=self._device)
            for name, shape in self._shapes.items()
        }
