"""Times, measured so that methods can be compared: one process, interleaved, medians."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightpeft.calls import without_labels

Action = Callable[[], None]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements, in seconds."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Summarise at least two values."""
        low, median, high = statistics.quantiles(values, n=4)
        return cls(median, low, high, len(values))


def interleaved_seconds(
    actions: Mapping[str, Action], repeats: int, device: torch.device, warmup: int = 2
) -> dict[str, Spread]:
    """Time each action `repeats` times, taking turns, so that noise of the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(warmup + repeats):
        for name, action in actions.items():
            seconds = _seconds(action, device)
            if number >= warmup:
                taken[name].append(seconds)
    return {name: Spread.of(values) for name, values in taken.items()}


def training_action(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    before_step: Action | None = None,
) -> Action:
    """One optimizer step on `batch`: forward, backward, `before_step`, AdamW."""

    def step() -> None:
        model.train()
        model(**batch).loss.backward()
        if before_step is not None:
            before_step()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_action(model: nn.Module, batch: Mapping[str, Tensor]) -> Action:
    """One forward pass in eval mode without gradients."""
    inputs = without_labels(model, batch)

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(**inputs)

    return forward


def _seconds(action: Action, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
