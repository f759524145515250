"""Measuring: taking turns, weights left alone."""

from pathlib import Path

import pytest
import torch
from tests.support.frozen import examples_run, freeze_lowest
from tests.support.models import make_batch, tiny_peft
from torch import nn

from lightpeft import PrefixConfig
from lightpeft.runs import measure_speed
from lightpeft.runs.measure import Spread, interleaved_seconds, training_action


def test_actions_take_turns_and_warm_up_is_not_counted() -> None:
    order: list[str] = []
    actions = {name: lambda name=name: order.append(name) for name in "ab"}
    spreads = interleaved_seconds(actions, 3, torch.device("cpu"), warmup=2)
    assert order == ["a", "b"] * 5
    assert {name: spread.repeats for name, spread in spreads.items()} == {"a": 3, "b": 3}


def test_spread_is_median_and_quartiles() -> None:
    spread = Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (spread.low, spread.median, spread.high) == (1.5, 3.0, 4.5)


def test_a_timed_training_step_at_rate_zero_moves_nothing() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> object:
            return type("Output", (), {"loss": self.linear(x).square().mean()})

    model = Model()
    before = model.linear.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    training_action(model, {"x": torch.ones(2, 3)}, optimizer)()
    assert torch.equal(model.linear.weight, before)


@pytest.mark.parametrize(
    ("prefix", "trains"),
    [(PrefixConfig(), False), (PrefixConfig(cache=False), True), (PrefixConfig(frozen=False), True)],
)
def test_frozen_layers_are_measured_as_they_run(prefix: PrefixConfig, trains: bool, tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path)
    freeze_lowest(model)
    with examples_run(model) as runs:
        found = measure_speed(
            {"light": model}, make_batch("bert", labels=True), 5, prefixes={"light": prefix}
        )
    measured, inferences = 2 + 5 + 2, 2 + 5 + 2
    assert len(runs) == inferences + (measured if trains else 2)
    assert found["light"].train_peak_bytes > 0
