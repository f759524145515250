"""Running sums on the device over the estimation steps that count."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lightpeft.processes import Processes

Sums = dict[str, Tensor]


class WindowSums:
    """Named vectors summed over optimizer steps, even and odd ones apart.

    Nothing here synchronises with the device.

    Args:
        sizes: how long each vector is.
        start: how many of the first steps do not count.
        processes: those that train together.
        own: names of the vectors that each of them sums over examples of its own; the others are the same.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        start: int,
        device: torch.device,
        processes: Processes = Processes(),
        own: Collection[str] = (),
    ) -> None:
        self.start = start
        self._processes, self._own = processes, frozenset(own)
        self.steps = 0
        """Steps that were taken."""
        self._sums = {
            name: torch.zeros((2, size), dtype=torch.float32, device=device) for name, size in sizes.items()
        }

    @property
    def counted(self) -> int:
        """Steps that are in the sums; before `start` is reached all that were taken."""
        return self.steps - self.start if self.steps >= self.start else self.steps

    def current(self, name: str) -> Tensor:
        """What this step is added to, (size,)."""
        return self._sums[name][self.steps % 2]

    def end_step(self) -> None:
        """The next step begins."""
        self.steps += 1
        if self.steps == self.start:
            for values in self._sums.values():
                values.zero_()

    def window(self) -> Sums:
        """Sums over the even and the odd steps that count, of all processes, (2, size) on the CPU."""
        return {name: sums.cpu() for name, sums in self._joint().items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The sums of all processes as named tensors, and a JSON header."""
        return self._joint(), {"steps": self.steps}

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what `state` gave; raises KeyError or RuntimeError if something else was summed."""
        self.steps = steps
        for name, values in self._sums.items():
            values.copy_(tensors[name])
            if name in self._own and not self._processes.is_first:
                values.zero_()

    def _joint(self) -> Sums:
        own = {name: sums for name, sums in self._sums.items() if name in self._own}
        return self._sums | self._processes.totals(own)
