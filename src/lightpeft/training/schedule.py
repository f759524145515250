"""Starting the learning-rate schedule anew after the cut, as the published runs do."""

from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from lightpeft.errors import ConfigError


def require_restartable(scheduler: Any) -> None:
    """Refuse a schedule that cannot start anew.

    Raises:
        ConfigError: the scheduler is not one of transformers' LambdaLR schedules.
    """
    if not isinstance(scheduler, LambdaLR):
        raise ConfigError(
            f"restart_schedule needs one of transformers' LambdaLR schedules, found "
            f"{type(scheduler).__name__}. Set restart_schedule=false or another lr_scheduler_type."
        )


def restart_schedule(scheduler: LambdaLR, args: TrainingArguments, steps: int) -> None:
    """Make `scheduler` run its whole course, warm-up included, over the next `steps` steps."""
    stretch_schedule(scheduler, args, steps)
    scheduler.last_epoch = 0
    rates = [base * f(0) for base, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def scale_rates(scheduler: Any, factor: float) -> None:
    """Multiply the rate of every group, now and for the rest of the course, under any scheduler."""
    for group in scheduler.optimizer.param_groups:
        group["lr"] *= factor
        if "initial_lr" in group:
            group["initial_lr"] *= factor
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def stretch_schedule(scheduler: LambdaLR, args: TrainingArguments, steps: int) -> None:
    """Give `scheduler` the shape of a course over `steps` steps, leaving it where it is."""
    fresh = get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0),
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=cast("dict[str, Any] | None", args.lr_scheduler_kwargs),
    )
    scheduler.lr_lambdas = list(fresh.lr_lambdas) * len(scheduler.base_lrs)
