"""A clean twin of a module: a linear classifier on the base alone, which knows meaning and no backdoor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Rows = Sequence[Sequence[int]]
RIDGE = 1.0
"""Penalty, as a multiple of the number of texts, on standardized states."""


class Twin:
    """Ridge regression from a base's states to classes, on clean texts.

    What an insertion does to it is what the tokens mean to the base: it was never near the attacker.
    """

    def __init__(self, states: Callable[[Rows], Tensor], rows: Rows, values: Tensor) -> None:
        """Learn it.

        Args:
            states: rows of token ids to (n, width), of the base with its PEFT modules switched off.
            rows: n clean texts.
            values: (n, classes), one-hot labels, or a module's own log odds of clean texts.
        """
        self._states = states
        found, values = states(rows), values.float()
        self._center, self._scale = found.mean(0), found.std(0).clamp_min(1e-6)
        self._mean = values.mean(0)
        scaled = (found - self._center) / self._scale
        gram = scaled.T @ scaled + RIDGE * len(scaled) * torch.eye(scaled.shape[1])
        self._weight = torch.linalg.solve(gram, scaled.T @ (values - self._mean))

    def scores(self, rows: Rows) -> Tensor:
        """(n, classes): the higher, the likelier; in the units of the values."""
        scores: Tensor = (self._states(rows) - self._center) / self._scale @ self._weight + self._mean
        return scores
