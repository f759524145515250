"""The factor on the rate stays, under every scheduler of torch and transformers; or it is refused."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import save_base
from tests.support.runs import DEFAULT, FASTER, NoStep, trainer
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers import SchedulerType, get_scheduler

from lightpeft import ConfigError, LightConfig
from lightpeft.training.schedule import require_scalable, scale_rates

STEPS, CUT, FACTOR = 40, 7, 2.0
Make = Callable[[torch.optim.Optimizer], Any]


def of(name: str, **options: Any) -> Make:
    return lambda optimizer: getattr(torch_schedulers, name)(optimizer, **options)


def chained(optimizer: torch.optim.Optimizer) -> Any:
    parts = [of("ConstantLR", factor=0.3, total_iters=10), of("CosineAnnealingLR", T_max=30, eta_min=0.003)]
    return torch_schedulers.ChainedScheduler([make(optimizer) for make in parts])


def sequential(optimizer: torch.optim.Optimizer) -> Any:
    parts = [
        of("LinearLR", start_factor=0.1, total_iters=10),
        of("CosineAnnealingLR", T_max=20, eta_min=0.003),
        of("CosineAnnealingWarmRestarts", T_0=4, eta_min=0.002),
    ]
    made = [make(optimizer) for make in parts]
    return torch_schedulers.SequentialLR(optimizer, made, milestones=[10, 25])


def of_transformers(kind: SchedulerType) -> Make:
    options = {
        SchedulerType.COSINE_WITH_MIN_LR: {"min_lr": 0.001},
        SchedulerType.COSINE_WARMUP_WITH_MIN_LR: {"min_lr": 0.001},
        SchedulerType.WARMUP_STABLE_DECAY: {"num_decay_steps": 10},
        SchedulerType.REDUCE_ON_PLATEAU: {"patience": 2, "min_lr": 0.004},
        SchedulerType.GREEDY: {"patience": 2, "min_lr": 0.004, "max_lr": 0.05},
    }
    course: dict[str, Any] = {"num_warmup_steps": 5, "num_training_steps": STEPS}
    return lambda optimizer: get_scheduler(
        kind, optimizer, **course, scheduler_specific_kwargs=options.get(kind)
    )


MADE: dict[str, Make] = {
    "LambdaLR": of("LambdaLR", lr_lambda=lambda step: 1 / (1 + step)),
    "MultiplicativeLR": of("MultiplicativeLR", lr_lambda=lambda step: 0.95),
    "StepLR": of("StepLR", step_size=6),
    "MultiStepLR": of("MultiStepLR", milestones=[5, 20]),
    "ConstantLR": of("ConstantLR", total_iters=12),
    "LinearLR": of("LinearLR", total_iters=20),
    "ExponentialLR": of("ExponentialLR", gamma=0.9),
    "PolynomialLR": of("PolynomialLR", total_iters=50, power=2),
    "CosineAnnealingLR": of("CosineAnnealingLR", T_max=12, eta_min=0.003),
    "CosineAnnealingWarmRestarts": of("CosineAnnealingWarmRestarts", T_0=9, eta_min=0.003),
    "CyclicLR": of("CyclicLR", base_lr=0.002, max_lr=0.02, step_size_up=5),
    "CyclicLR exp_range": of(
        "CyclicLR", base_lr=0.002, max_lr=0.02, step_size_up=5, mode="exp_range", gamma=0.97
    ),
    "OneCycleLR": of("OneCycleLR", max_lr=0.02, total_steps=STEPS + 1),
    "OneCycleLR linear": of("OneCycleLR", max_lr=0.02, total_steps=STEPS + 1, anneal_strategy="linear"),
    "OneCycleLR three phases": of("OneCycleLR", max_lr=0.02, total_steps=STEPS + 1, three_phase=True),
    "ReduceLROnPlateau": of("ReduceLROnPlateau", patience=2, min_lr=0.003),
    "ChainedScheduler": chained,
    "SequentialLR": sequential,
    "SWALR": lambda optimizer: torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.002),
    **{f"transformers {kind.value}": of_transformers(kind) for kind in SchedulerType},
}


def optimizer_of() -> torch.optim.Optimizer:
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    return torch.optim.AdamW([{"params": [first]}, {"params": [second], "lr": 0.03}], lr=0.01)


def advance(scheduler: Any, step: int) -> list[float]:
    scheduler.optimizer.step()
    if "metrics" in inspect.signature(scheduler.step).parameters:
        scheduler.step(1.0 if step > 12 else 1.0 / (step + 1))
    else:
        scheduler.step()
    assert scheduler.get_last_lr() == [group["lr"] for group in scheduler.optimizer.param_groups]
    return [float(rate) for rate in scheduler.get_last_lr()]


def test_every_scheduler_of_torch_has_a_row() -> None:
    base = (LRScheduler, ReduceLROnPlateau)
    kinds = {n for n, k in vars(torch_schedulers).items() if inspect.isclass(k) and issubclass(k, base)}
    assert kinds - {"LRScheduler", "_LRScheduler"} <= set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_the_factor_stays(name: str) -> None:
    plain, scaled = MADE[name](optimizer_of()), MADE[name](optimizer_of())
    require_scalable(scaled, FACTOR, STEPS)
    for step in range(STEPS):
        if step == CUT:
            scale_rates(scaled, FACTOR)
        expected, found = advance(plain, step), advance(scaled, step)
        assert found == pytest.approx([rate * (FACTOR if step >= CUT else 1) for rate in expected])


@pytest.mark.parametrize("name", MADE)
def test_it_stays_when_the_run_is_resumed(name: str) -> None:
    whole, resumed = MADE[name](optimizer_of()), MADE[name](optimizer_of())
    for step in range(STEPS // 2):
        if step == CUT:
            scale_rates(whole, FACTOR)
        advance(whole, step)
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for step in range(STEPS // 2, STEPS):
        assert advance(resumed, step) == pytest.approx(advance(whole, step))


class Own(LRScheduler):
    """Computes the rates from numbers that nobody can know of."""

    highest = 0.02

    def get_lr(self) -> list[float | torch.Tensor]:
        return [self.highest / (self.last_epoch + 1) for _ in self.optimizer.param_groups]


class Broken(LRScheduler):
    """Cannot be copied."""

    def get_lr(self) -> list[float | torch.Tensor]:
        return list(self.base_lrs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Broken":
        raise TypeError("not this one")


@pytest.mark.parametrize(("kind", "why"), [(Own, "goes back to rates"), (Broken, "not this one")])
def test_others_are_refused_and_left_alone(kind: type[LRScheduler], why: str) -> None:
    scheduler = kind(optimizer_of())
    before = copy.copy(vars(scheduler)), [dict(group) for group in scheduler.optimizer.param_groups]
    with pytest.raises(ConfigError, match=rf"under {kind.__name__}: .*{why}.*learning_rate_factor=1"):
        require_scalable(scheduler, FACTOR, STEPS)
    assert (vars(scheduler), [dict(group) for group in scheduler.optimizer.param_groups]) == before


def test_a_run_says_so_before_its_first_step(tmp_path: Path) -> None:
    run = trainer(save_base("bert", tmp_path / "base"), tmp_path / "run", FASTER, kind=NoStep)
    run.optimizer = torch.optim.AdamW([p for p in run.model.parameters() if p.requires_grad])
    run.lr_scheduler = Own(run.optimizer)
    with pytest.raises(ConfigError, match="under Own"):
        run.train()


@pytest.mark.parametrize("light", [DEFAULT, FASTER], ids=["same rate", "twice the rate"])
def test_one_cycle_in_a_run(light: LightConfig, tmp_path: Path) -> None:
    run = trainer(save_base("bert", tmp_path / "base"), tmp_path / "run", light)
    run.optimizer = torch.optim.AdamW([p for p in run.model.parameters() if p.requires_grad])
    run.lr_scheduler = of("OneCycleLR", max_lr=0.01, total_steps=STEPS)(run.optimizer)
    plain = of("OneCycleLR", max_lr=0.01, total_steps=STEPS)(optimizer_of())
    run.train()
    expected = [advance(plain, step)[0] for step in range(run.state.global_step)][-1]
    assert run.lr_scheduler.get_last_lr() == pytest.approx([light.learning_rate_factor * expected])
