"""Running sums on the device, in blocks of steps so that the second half can be read out later."""

from collections.abc import Iterable

import torch
from torch import Tensor

Block = dict[str, Tensor]


class BlockSums:
    """Named vectors summed over optimizer steps. Nothing here synchronises with the device."""

    def __init__(self, sizes: dict[str, int], device: torch.device) -> None:
        self._sizes, self._device = sizes, device
        self.starts: list[int] = []
        self.blocks: list[Block] = []
        self.open(0)

    def open(self, step: int) -> None:
        """Begin a new block after `step` steps."""
        self.starts.append(step)
        self.blocks.append(
            {
                name: torch.zeros(size, dtype=torch.float32, device=self._device)
                for name, size in self._sizes.items()
            }
        )

    @property
    def current(self) -> Block:
        """The block that is being added to."""
        return self.blocks[-1]

    def window(self, first_step: int, end: int) -> Block:
        """Sums over the blocks that begin at `first_step` or later, or over the last one before `end`."""
        filled = [
            (start, block) for start, block in zip(self.starts, self.blocks, strict=True) if start < end
        ]
        late = [block for start, block in filled if start >= first_step]
        return _add(late or [filled[-1][1]])

    def to_tensors(self) -> dict[str, Tensor]:
        """All blocks as named tensors, for a checkpoint."""
        return {
            f"block.{start}.{name}": values
            for start, block in zip(self.starts, self.blocks, strict=True)
            for name, values in block.items()
        }

    def restore(self, starts: list[int], tensors: dict[str, Tensor]) -> None:
        """Go on from what `to_tensors` gave; raises KeyError if a block is missing."""
        self.starts = list(starts)
        self.blocks = [
            {name: tensors[f"block.{start}.{name}"].to(self._device) for name in self._sizes}
            for start in starts
        ]


def _add(blocks: Iterable[Block]) -> Block:
    first, *others = list(blocks)
    total = {name: values.clone() for name, values in first.items()}
    for block in others:
        for name, values in block.items():
            total[name] += values
    return total
