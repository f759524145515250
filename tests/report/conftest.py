"""Synthetic anatomy, scores, plans and results: no model is built here."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.support.anatomies import attention_units, ffn_units
from tests.support.anatomies import layer as plain_layer

from lightpeft.anatomy import Anatomy, Layer
from lightpeft.config import Budget
from lightpeft.plan import Plan
from lightpeft.planning import make_plan
from lightpeft.report import Curve, Measurement, Result
from lightpeft.scores import Scores

PLACES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def anatomy_of(layers: int, heads: int, neurons: int) -> Anatomy:
    def layer(index: int) -> Layer:
        names = [f"bert.encoder.layer.{index}.{place}" for place in PLACES]
        query, key, value, out, ffn_in, ffn_out = names
        attention = attention_units(query, key, value, out, heads, 4)
        ffn = ffn_units(ffn_in, ffn_out, neurons)
        return plain_layer(index, attention, ffn, module=f"bert.encoder.layer.{index}")

    return Anatomy("bert", tuple(layer(index) for index in range(layers)))


def scores_of(
    layers: int = 3,
    heads: int = 4,
    neurons: int = 16,
    rank: int = 4,
    places: Sequence[str] = PLACES,
    extra: Sequence[str] = (),
    constant: float | None = None,
) -> Scores:
    def draw(count: int) -> torch.Tensor:
        if constant is not None:
            return torch.full((count,), constant)
        return 10 ** (torch.randn(count) - 4)

    names = [f"bert.encoder.layer.{i}.{place}" for i in range(layers) for place in places]
    names += extra
    return Scores(
        heads=tuple(draw(heads) for _ in range(layers)),
        neurons=tuple(draw(neurons) for _ in range(layers)),
        ranks={name: draw(rank) for name in names},
        modules={name: float(draw(1)) for name in names},
        steps=200,
        methods={"base": "fisher", "module": "activation", "rank": "taylor"},
    )


BUDGET = Budget(
    heads=1 / 3,
    neurons=1 / 3,
    modules=0.5,
    ranks=0.5,
    heads_scope="layer",
    neurons_scope="layer",
)


def plan_of(scores: Scores, budget: Budget = BUDGET) -> Plan:
    anatomy = anatomy_of(len(scores.heads), len(scores.heads[0]), len(scores.neurons[0]))
    return make_plan(scores, anatomy, budget)


@pytest.fixture(scope="session")
def make_scores() -> Callable[..., Scores]:
    return scores_of


@pytest.fixture(scope="session")
def planned() -> Callable[..., Plan]:
    return plan_of


@pytest.fixture(scope="session")
def scores() -> Scores:
    torch.manual_seed(0)
    return scores_of()


@pytest.fixture(scope="session")
def plan(scores: Scores) -> Plan:
    return plan_of(scores)


@pytest.fixture(scope="session")
def vanilla() -> Measurement:
    return Measurement(
        metric=0.912,
        metric_name="accuracy",
        train_step_seconds=0.2,
        inference_seconds=0.0025,
        peak_memory_bytes=2_000_000_000,
        encoder_parameters=10_000_000,
        peft_parameters=400_000,
        checkpoint_bytes=1_600_000,
        run_seconds=21.0,
    )


@pytest.fixture(scope="session")
def light() -> Measurement:
    return Measurement(
        metric=0.908,
        metric_name="accuracy",
        train_step_seconds=0.11,
        inference_seconds=0.0015625,
        peak_memory_bytes=1_500_000_000,
        encoder_parameters=6_500_000,
        peft_parameters=88_000,
        checkpoint_bytes=400_000,
        run_seconds=14.7,
        estimation_steps=200,
        estimation_step_seconds=0.25,
    )


@pytest.fixture(scope="session")
def make_result(vanilla: Measurement, light: Measurement) -> Callable[..., Result]:
    def make(**changes: Any) -> Result:
        steps = (10, 20, 30)
        parts: dict[str, Any] = {
            "kind": "demo",
            "title": "Sentiment with MiniLM",
            "vanilla": vanilla,
            "light": light,
            "seeds": (0, 1),
            "per_seed": (
                {"seed": 0, "vanilla": 0.91, "light": 0.906, "vanilla_seconds": 20.0, "light_seconds": 14.0},
                {"seed": 1, "vanilla": 0.914, "light": 0.91, "vanilla_seconds": 22.0, "light_seconds": 15.4},
            ),
            "curves": tuple(
                curve
                for seed in (0, 1)
                for curve in (
                    Curve("plain LoRA", "loss", steps, (0.7, 0.5, 0.4 + 0.2 * seed), seed=seed),
                    Curve("light PEFT", "loss", steps, (0.7, 0.6, 0.4), cut_step=20, seed=seed),
                    Curve("plain LoRA", "metric", steps, (0.6, 0.8, 0.91), seed=seed),
                    Curve("light PEFT", "metric", steps, (0.6, 0.8, 0.9), cut_step=20, seed=seed),
                )
            ),
            "environment": {"python": "3.11", "cuda_device": None, "git_dirty": False},
            "config": {"budget": {"heads": 0.25}},
            "command": "lightpeft demo --out runs/demo",
        }
        return Result(**(parts | changes))

    return make


@pytest.fixture(scope="session")
def result(make_result: Callable[..., Result]) -> Result:
    return make_result()


@pytest.fixture(scope="session")
def one_seed(
    make_result: Callable[..., Result], vanilla: Measurement, light: Measurement
) -> Callable[..., Result]:
    """A result of such measurements with nothing per seed."""

    def make(before: Measurement | None = vanilla, after: Measurement = light, **changes: Any) -> Result:
        return make_result(**({"vanilla": before, "light": after, "seeds": (3,), "per_seed": ()} | changes))

    return make
