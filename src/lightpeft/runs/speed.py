"""Compare models by step time, inference time and peak memory."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightpeft.config import EstimationConfig
from lightpeft.estimation import Estimator
from lightpeft.memory import peak_bytes
from lightpeft.runs.measure import (
    Action,
    Spread,
    inference_action,
    interleaved_seconds,
    training_action,
)

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
) -> dict[str, Speed]:
    """Measure training step and inference of every model, taking turns in this process.

    Weights stay as they are: AdamW runs in full, at learning rate 0.

    Args:
        batch: one batch with labels, on the models' device.
        estimate: name of the plain model to also measure with gates in, and how.

    Returns:
        one entry per model, and `estimation` if asked for.
    """
    device = next(iter(batch.values())).device
    steps = {name: training_action(model, batch, _optimizer(model)) for name, model in models.items()}
    if estimate is not None:
        name, config = estimate
        steps[ESTIMATION] = _estimating_action(models[name], batch, config)
    forwards = {name: inference_action(model, batch) for name, model in models.items()}
    train = interleaved_seconds(steps, repeats, device)
    infer = interleaved_seconds(forwards, repeats, device)
    owner = {name: models[name] for name in models}
    if estimate is not None:
        owner[ESTIMATION] = models[estimate[0]]
    return {
        name: Speed(
            train_step=train[name],
            train_peak_bytes=peak_bytes(owner[name], step),
            inference=infer.get(name),
            inference_peak_bytes=peak_bytes(owner[name], forwards[name]) if name in forwards else None,
        )
        for name, step in steps.items()
    }


def training_peak_bytes(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """The most bytes held at once in a training step, the model's included; weights stay as they are."""
    return peak_bytes(model, training_action(model, batch, _optimizer(model)))


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=0.0, weight_decay=0.0)


def _estimating_action(model: nn.Module, batch: Mapping[str, Tensor], config: EstimationConfig) -> Action:
    """An estimation step; putting the gates in and out counts too, though a run does it once."""
    estimator = Estimator(model, config)
    step = training_action(model, batch, _optimizer(model), before_step=lambda: estimator.end_step(0.0))

    def attached() -> None:
        estimator.attach()
        try:
            step()
        finally:
            estimator.detach()

    return attached
