"""Starting the learning-rate schedule anew after the cut, as the published runs do."""

import copy
import inspect
import math
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from accelerate.scheduler import AcceleratedScheduler
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from lightpeft.errors import ConfigError

_RATES_OF_GROUPS = {"lr", "initial_lr", "max_lr", "min_lr", "swa_lr"}
_RATES = {"base_lrs", "max_lrs", "min_lrs", "default_min_lr", "eta_min", "eps", "_init_lrs", "_last_lr"}
"""What torch's and transformers' schedulers compute rates from, in the groups and of their own."""
_TRIED = 300


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
    """Multiply the rate of every group, now and for the rest of the course, and the limits of the course."""
    for group in _inner(scheduler).optimizer.param_groups:
        for key in _RATES_OF_GROUPS & group.keys():
            group[key] = group[key] * factor
    for part in _parts(_inner(scheduler)):
        for key in _RATES & vars(part).keys():
            value = getattr(part, key)
            scaled = [rate * factor for rate in value] if isinstance(value, list | tuple) else value * factor
            setattr(part, key, scaled)


def require_scalable(scheduler: Any, factor: float, steps: int) -> None:
    """Try out, before a run, whether the rates of `scheduler` stay multiplied once `scale_rates` was called.

    Args:
        steps: how many the run has left; so many of them are gone through, twice.

    Raises:
        ConfigError: they do not, or it cannot be tried out.
    """
    try:
        stays = _stays_scaled(_inner(scheduler), factor, min(steps, _TRIED))
    except Exception as error:  # of somebody's scheduler; which one, nobody knows
        raise _unscalable(scheduler, f"a trial of it ended in {type(error).__name__}: {error}") from error
    if not stays:
        raise _unscalable(scheduler, "it goes back to rates of its own")


def _stays_scaled(scheduler: Any, factor: float, steps: int) -> bool:
    plain, scaled = _twin(scheduler), _twin(scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer steps
        for step in range(steps):
            if step == steps // 3:
                scale_rates(scaled, factor)
            for twin in (plain, scaled):
                _step(twin)
            if step >= steps // 3 and not math.isclose(1, _largest_ratio(plain, scaled, factor)):
                return False
    return True


def _largest_ratio(plain: Any, scaled: Any, factor: float) -> float:
    """How far the scaled rates are off from the factor times the plain ones, as a ratio."""
    pairs = zip(plain.optimizer.param_groups, scaled.optimizer.param_groups, strict=True)
    ratios = [float(b["lr"]) / (factor * float(a["lr"])) for a, b in pairs if float(a["lr"]) != 0]
    return max(ratios, key=lambda ratio: abs(ratio - 1), default=1.0)


def _twin(scheduler: Any) -> Any:
    """A copy of a scheduler that drives parameters nobody has."""
    groups = scheduler.optimizer.param_groups
    stand_ins = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in groups]
    optimizer = torch.optim.SGD(stand_ins, lr=1.0)
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        own.update({key: copy.deepcopy(value) for key, value in group.items() if "param" not in key})
    return copy.deepcopy(scheduler, {id(scheduler.optimizer): optimizer})


def _step(scheduler: Any) -> None:
    if "metrics" in inspect.signature(scheduler.step).parameters:
        scheduler.step(1.0)
    else:
        scheduler.step()


def _inner(scheduler: Any) -> Any:
    """The scheduler inside accelerate's wrapper."""
    return scheduler.scheduler if isinstance(scheduler, AcceleratedScheduler) else scheduler


def _parts(scheduler: Any) -> Iterator[Any]:
    """A scheduler and those it is made of."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _parts(part)


def _unscalable(scheduler: Any, why: str) -> ConfigError:
    return ConfigError(
        f"the learning rate cannot stay multiplied after the cut under {type(_inner(scheduler)).__name__}: "
        f"{why}. Set learning_rate_factor=1, or use a schedule of transformers or torch."
    )


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
