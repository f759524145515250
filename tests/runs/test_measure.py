"""Measuring: taking turns, weights left alone."""

import torch
from torch import nn

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
