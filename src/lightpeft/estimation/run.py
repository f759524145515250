"""`estimate`: the estimation phase on its own, without a Trainer."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.config import Budget, EstimationConfig
from lightpeft.errors import ConfigError
from lightpeft.estimation.estimator import Estimator
from lightpeft.estimation.stopping import Settled
from lightpeft.planning import make_plan
from lightpeft.scores import Scores


def estimate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    config: EstimationConfig | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    learning_rate: float = 3e-4,
    budget: Budget | None = None,
) -> Scores:
    """Train `model`'s PEFT modules for some steps with gates in place, and score every unit.

    These are real training steps: the PEFT weights are better afterwards, the base is untouched.

    Args:
        model: a PeftModel; its forward must return a loss.
        batches: one per optimizer step, tensors by argument name, labels included.
        config: how many steps, which scores.
        optimizer: of the trainable parameters; AdamW with `learning_rate` if not given.
        budget: with `steps="auto"`, what would be cut (the default budget if not given).

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
    estimator = Estimator(model, config)
    settled, was_training = Settled(config), model.training
    estimator.attach()
    try:
        for batch in _whole_run(batches, config):
            _train_step(model, batch, optimizer, estimator)
            if should_stop(estimator, settled, budget or Budget()):
                break
        return estimator.scores()
    finally:
        estimator.detach()
        model.train(was_training)


def should_stop(estimator: Estimator, settled: Settled, budget: Budget) -> bool:
    """Whether estimation has taken its steps or, with `auto`, the set to be cut has settled."""
    config = estimator.config
    if estimator.steps >= config.most_steps:
        return True
    if config.steps != "auto" or estimator.steps not in config.checks:
        return False
    plan = make_plan(estimator.scores(halves=False), estimator.anatomy, budget)
    return settled.update(plan.cut_units())


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


def _whole_run(batches: Iterable[Mapping[str, Any]], config: EstimationConfig) -> Iterable[Mapping[str, Any]]:
    taken = 0
    for batch in batches:
        yield batch
        taken += 1
    if config.steps != "auto" and taken < config.most_steps:
        raise ConfigError(
            f"estimation.steps is {config.most_steps}, but there were only {taken} batches. Give more "
            "batches (several epochs) or fewer steps."
        )
