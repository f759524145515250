"""Runs with a target: measured once, kept in the run's folder, met, and said."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import save_base
from tests.support.runs import DEFAULT, ESTIMATION, STEPS, trainer
from torch import nn
from transformers import Trainer, TrainerCallback

from lightpeft import Budget, ConfigError, LightCallback, PlanError, Target, find_anatomy
from lightpeft.anatomy import Anatomy
from lightpeft.costs import Costs, CostTable, Curve, LayerCosts
from lightpeft.latency.file import LATENCY
from lightpeft.planning import ESTIMATION_COST
from lightpeft.surgery import record_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), dropout=0.1)


def light(**target: Any) -> Any:
    budget = Budget(heads_scope="global", neurons_scope="global", modules=0.5, frozen_layers="auto")
    return dataclasses.replace(DEFAULT, budget=budget, target=Target(**target))


def made_up(anatomy: Anatomy, key: dict[str, Any]) -> CostTable:
    """Every head costs 2, every neuron 1, a layer 4 beside them and 2 more with PEFT; and 10 in no layer."""

    def layer(heads: int, neurons: int) -> LayerCosts:
        whole = 2.0 * heads + neurons + 6
        return LayerCosts(
            whole,
            whole - 2,
            Curve((1, heads), (whole - 2.0 * (heads - 1), whole)),
            Curve((1, neurons), (whole - (neurons - 1.0), whole)),
        )

    layers = tuple(layer(one.heads, one.neurons) for one in anatomy.layers)
    costs = Costs(10 + sum(one.whole for one in layers), layers)
    return CostTable(key, 0.0, costs, costs, costs, (4.0,) * len(layers))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Made-up costs in place of measured ones; notes what was asked for."""
    asked: list[str] = []

    def measure(
        model: nn.Module, batch: Any, quantity: Any, budget: Any, key: dict[str, Any], *, narrows: bool
    ) -> CostTable:
        assert narrows
        asked.append(quantity)
        return made_up(find_anatomy(model), key)

    monkeypatch.setattr("lightpeft.latency.file.measure_costs", measure)
    return asked


@pytest.mark.parametrize(
    ("quantity", "share"), [("inference", 0.8), ("training", 0.8), ("memory", 0.65), ("parameters", 0.8)]
)
def test_a_run_meets_its_target_and_says_so(
    quantity: str,
    share: float,
    base: Path,
    tmp_path: Path,
    measured: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lightpeft")
    run = trainer(base, tmp_path, light(**{quantity: share}))
    run.train()
    plan = run.light.plan
    assert plan.target is not None
    assert share - 0.2 < plan.target.predicted <= share
    assert plan.counts.heads.cut + plan.counts.neurons.cut > 0
    assert measured == ([] if quantity == "parameters" else [quantity])
    assert run.light.measured is not None
    assert f"predicted {plan.target.predicted:.3g}" in caplog.text
    assert f"measured {run.light.measured:.3g}" in caplog.text
    assert record_of(run.model).plan == plan
    if quantity == "parameters":
        assert run.light.measured == pytest.approx(plan.target.predicted)


def test_a_run_is_measured_by_what_its_batches_hold(
    base: Path, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of the estimation are the longest here, as where a Trainer groups by length."""
    now, cost, step = 0.0, 0.25, 0
    monkeypatch.setattr("lightpeft.training.targeting.time.thread_time", lambda: now)
    sizes: list[int] = []

    class Inputs(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            nonlocal step
            step += 1

    def pad_and_count(inner: Any, features: Any) -> Any:
        batch = inner(features)
        ids = batch["input_ids"]
        return batch | {
            name: torch.cat([value] * 3, dim=1) if value.shape == ids.shape else value
            for name, value in batch.items()
        }

    run = trainer(base, tmp_path, light(training=0.8), callbacks=[Inputs()])
    inner = run.data_collator
    run.data_collator = lambda rows: pad_and_count(inner, rows) if step < ESTIMATION else inner(rows)

    def compute(_: nn.Module, __: Any, given: dict[str, Any]) -> None:
        nonlocal now
        if torch.is_grad_enabled() and len(sizes) < step:
            sizes.append(given["input_ids"].numel())
            now += sizes[-1] * (ESTIMATION_COST if step <= ESTIMATION else cost)

    run.model.register_forward_pre_hook(compute, with_kwargs=True)
    run.train()
    assert sizes[0] > sizes[-1]
    early, late = sum(sizes[:ESTIMATION]), sum(sizes[ESTIMATION:])
    assert run.light.measured == pytest.approx((ESTIMATION_COST * early + cost * late) / (early + late))


def test_a_plain_trainer_with_the_callback_meets_a_target(
    base: Path, tmp_path: Path, measured: list[str]
) -> None:
    callback = LightCallback(light(inference=0.8))
    trainer(base, tmp_path, kind=Trainer, callbacks=[callback]).train()
    assert measured == ["inference"]
    assert callback.plan is not None
    assert callback.plan.target is not None
    assert callback.plan.target.predicted <= 0.8


@pytest.mark.parametrize("checkpoint", [2, 6], ids=["before the cut", "after the cut"])
def test_a_run_with_a_target_is_resumed(
    checkpoint: int, base: Path, tmp_path: Path, measured: list[str]
) -> None:
    config = light(inference=0.8)
    saves = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    whole = trainer(base, tmp_path, config, **saves)
    whole.train()
    table = json.loads((tmp_path / LATENCY).read_text())
    resumed = trainer(base, tmp_path, config, **saves)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert resumed.light.plan == whole.light.plan
    assert measured == ["inference"]
    assert json.loads((tmp_path / LATENCY).read_text()) == table


@pytest.mark.parametrize("damage", ["{", '{"format_version": 1}', "[]"])
def test_a_damaged_table_is_measured_anew(
    damage: str, base: Path, tmp_path: Path, measured: list[str]
) -> None:
    (tmp_path / LATENCY).write_text(damage)
    trainer(base, tmp_path, light(inference=0.8)).train()
    assert measured == ["inference"]
    assert CostTable.from_dict(json.loads((tmp_path / LATENCY).read_text())).key["quantity"] == "inference"


def test_a_table_of_something_else_is_measured_anew(base: Path, tmp_path: Path, measured: list[str]) -> None:
    for config in (light(inference=0.8), light(memory=0.8)):
        trainer(base, tmp_path, config).train()
    assert measured == ["inference", "memory"]


def test_estimation_that_takes_more_than_the_target_is_refused_before_the_run(
    base: Path, tmp_path: Path
) -> None:
    run = trainer(base, tmp_path, light(training=0.4))
    with pytest.raises(ConfigError, match=rf"the {ESTIMATION} steps of estimation alone take about 0\.428"):
        run.train()
    assert run.state.global_step == 0
    assert STEPS == 10


def test_what_no_cut_can_reach_is_refused_with_what_one_can(
    base: Path, tmp_path: Path, measured: list[str]
) -> None:
    with pytest.raises(PlanError, match=r"target\.inference=0\.01 cannot be met: at least 0\.\d+"):
        trainer(base, tmp_path, light(inference=0.01)).train()
