"""Where the generators of Python, NumPy and torch are, to put them back there."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The state of all global generators, those of CUDA devices included."""

    python: tuple[Any, ...]
    numpy: Any
    torch: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> "RandomState":
        """The state at this moment."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Go on drawing from here."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


@contextmanager
def same_random_state() -> Iterator[None]:
    """What is drawn inside leaves no trace."""
    state = RandomState.now()
    try:
        yield
    finally:
        state.restore()
