"""Compare models by step time, inference time and peak memory."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightpeft.config import EstimationConfig, PrefixConfig
from lightpeft.estimation import Estimator
from lightpeft.memory import peak_bytes
from lightpeft.runs.measure import (
    Action,
    Spread,
    inference_action,
    interleaved_seconds,
    training_action,
)
from lightpeft.training.prefix import FrozenPrefix, cache_of

ESTIMATION = "estimation"


@dataclass(frozen=True)
class Speed:
    """What one method costs on a batch. Estimation has no inference of its own."""

    train_step: Spread
    train_peak_bytes: int
    inference: Spread | None = None
    inference_peak_bytes: int | None = None


def measure_speed(
    models: Mapping[str, nn.Module],
    batch: Mapping[str, Tensor],
    repeats: int,
    estimate: tuple[str, EstimationConfig] | None = None,
    prefixes: Mapping[str, PrefixConfig] | None = None,
) -> dict[str, Speed]:
    """Measure training step and inference of every model, taking turns in this process.

    Weights stay as they are: AdamW runs in full, at learning rate 0.

    Args:
        batch: one batch with labels, on the models' device.
        estimate: name of the plain model to also measure with gates in, and how.
        prefixes: how the frozen layers of some of the models run while these train.

    Returns:
        one entry per model, and `estimation` if asked for.
    """
    device = next(iter(batch.values())).device
    steps = {name: training_action(model, batch, _optimizer(model)) for name, model in models.items()}
    if estimate is not None:
        name, config = estimate
        steps[ESTIMATION] = _estimating_action(models[name], batch, config)
    forwards = {name: inference_action(model, batch) for name, model in models.items()}
    owner = {name: models[name] for name in models}
    if estimate is not None:
        owner[ESTIMATION] = models[estimate[0]]
    with ExitStack() as stack:
        for name, prefix in (prefixes or {}).items():
            stack.enter_context(running_prefix(models[name], prefix))
        train = interleaved_seconds(steps, repeats, device)
        train_peaks = {name: peak_bytes(owner[name], step) for name, step in steps.items()}
    infer = interleaved_seconds(forwards, repeats, device)
    return {
        name: Speed(
            train_step=train[name],
            train_peak_bytes=train_peaks[name],
            inference=infer.get(name),
            inference_peak_bytes=peak_bytes(owner[name], forwards[name]) if name in forwards else None,
        )
        for name in steps
    }


@contextmanager
def running_prefix(model: nn.Module, prefix: PrefixConfig | None) -> Iterator[None]:
    """Run the frozen layers of a model as in a run after the cut; without `prefix` as all others."""
    if prefix is None or not prefix.frozen:
        yield
        return
    cache = cache_of(prefix, Path(tempfile.gettempdir())) if prefix.cache else None
    frozen = FrozenPrefix(model, cache=cache)
    try:
        yield
    finally:
        frozen.remove()


def training_peak_bytes(
    model: nn.Module, batch: Mapping[str, Tensor], prefix: PrefixConfig | None = None
) -> int:
    """The most bytes held at once in a training step, the model's included; weights stay as they are.

    Args:
        prefix: how the model's frozen layers run. What the cache keeps does not count.
    """
    with running_prefix(model, prefix):
        return peak_bytes(model, training_action(model, batch, _optimizer(model)))


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=0.0, weight_decay=0.0)


def _estimating_action(model: nn.Module, batch: Mapping[str, Tensor], config: EstimationConfig) -> Action:
    """An estimation step; putting the gates in and out counts too, though a run does it once."""
    estimator = Estimator(model, config)
    step = training_action(model, batch, _optimizer(model), before_step=lambda: estimator.end_step(0.0))
    return with_gates(estimator, step)


def with_gates(estimator: Estimator, step: Action) -> Action:
    """A training step with the gates put in before it and taken out after it."""

    def attached() -> None:
        estimator.attach()
        try:
            step()
        finally:
            estimator.detach()

    return attached
