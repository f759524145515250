"""`estimate`: the estimation phase on its own, without a Trainer."""

import dataclasses
import itertools
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightpeft.config import EstimationConfig, auto_steps
from lightpeft.errors import ConfigError
from lightpeft.estimation.estimator import Estimator
from lightpeft.processes import Processes
from lightpeft.scores import Scores


def estimate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    config: EstimationConfig | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    learning_rate: float = 3e-4,
    processes: Processes = Processes(),
) -> Scores:
    """Train `model`'s PEFT modules for some steps with gates in place, and score every unit.

    These are real training steps: the PEFT weights are better afterwards, the base is untouched.

    Args:
        model: a PeftModel, or DDP around one; its forward must return a loss.
        batches: one per optimizer step, tensors by argument name, labels included.
        config: how many steps, which scores; `steps="auto"` takes 3 % of the batches, at least 40 and at most
            200, and 40 where they have no length; where there are fewer, all of them.
        optimizer: of the trainable parameters; AdamW with `learning_rate` if not given.
        processes: those that train this model together, each on batches of its own: `Processes.of_group()`.
            Averaging the gradients of the parameters is the model's affair (DDP, or FSDP2's `fully_shard`).

    Raises:
        ConfigError: the batches end before the steps do, or nothing is trainable.
    """
    config = config or EstimationConfig()
    if optimizer is None:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trainable:
            raise ConfigError(
                "the model has no trainable parameter; wrap it with "
                "peft.get_peft_model, or load its adapter with is_trainable=True."
            )
        optimizer = torch.optim.AdamW(trainable, lr=learning_rate)
    steps = _steps_on(batches) if config.steps == "auto" else config.steps
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    estimator = Estimator(inner, dataclasses.replace(config, steps=steps), processes=processes)
    was_training = model.training
    estimator.attach()
    try:
        for batch in itertools.islice(batches, steps):
            _train_step(model, batch, optimizer, estimator)
        if config.steps != "auto":
            _require(steps, estimator.steps)
        return processes.shared(estimator.scores())
    finally:
        estimator.detach()
        model.train(was_training)


def _train_step(
    model: nn.Module,
    batch: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    estimator: Estimator,
) -> None:
    device = next(model.parameters()).device
    model.train()
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    model(**inputs).loss.backward()
    estimator.end_step(optimizer.param_groups[0]["lr"])
    optimizer.step()
    optimizer.zero_grad()


def _steps_on(batches: Iterable[Mapping[str, Any]]) -> int:
    known = operator.length_hint(batches)
    return min(auto_steps(known), known) if known else auto_steps(0)


def _require(steps: int, taken: int) -> None:
    if taken < steps:
        raise ConfigError(
            f"estimation.steps is {steps}, but there were only {taken} batches. Give more batches (several "
            "epochs) or fewer steps."
        )
