"""Memory: every storage once, from when it is made until the last tensor on it is gone."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightpeft.memory import LiveBytes, peak_bytes, tensor_bytes

FLOAT = 4


def test_the_peak_is_what_lives_at_once_on_top_of_the_model() -> None:
    model = nn.Linear(10, 10, bias=False)

    def action() -> None:
        first = torch.zeros(1000, 1000)
        second = torch.zeros(500, 1000)
        del first, second
        torch.zeros(250, 1000)

    assert peak_bytes(model, action) == FLOAT * (100 + 1_500_000)


def test_views_and_writes_in_place_take_nothing() -> None:
    older = torch.zeros(100)
    with LiveBytes() as live:
        older.add_(1)
        made = older.view(10, 10) + 1
        views = [made.t(), made[2:], made.detach(), made.expand(5, 10, 10)]
        made.mul_(2)
        assert (live.now, live.peak) == (100 * FLOAT, 100 * FLOAT)
        del made
        assert live.now == 100 * FLOAT, "the views still hold it"
        del views
        assert (live.now, live.peak) == (0, 100 * FLOAT)
        live.reset_peak()
        assert live.peak == 0


def squares(x: torch.Tensor) -> torch.Tensor:
    return x.sin().sin().sin().sin()


@pytest.mark.parametrize(
    ("is_checkpointed", "saved"), [(False, 4), (True, 1)], ids=["all saved", "checkpointed"]
)
def test_what_the_backward_pass_needs_counts_until_it_ran(is_checkpointed: bool, saved: int) -> None:
    weight = torch.ones(1000, requires_grad=True)
    with LiveBytes() as live:
        x = weight * 2
        loss = (checkpoint(squares, x, use_reentrant=False) if is_checkpointed else squares(x)).sum()
        del x
        assert live.now == saved * 1000 * FLOAT + FLOAT
        loss.backward()
        del loss
        assert live.now == 1000 * FLOAT, "the gradient"
        weight.grad = None
        assert live.now == 0


def test_what_an_optimizer_makes_in_its_first_step_does_not_count() -> None:
    model = nn.Linear(100, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        model.weight.grad = torch.ones(1, 100)
        optimizer.step()
        optimizer.zero_grad()

    assert peak_bytes(model, step) == 2 * 100 * FLOAT


def test_tensor_bytes_counts_parameters_and_buffers() -> None:
    assert tensor_bytes(nn.BatchNorm1d(4)) == FLOAT * (4 + 4 + 4 + 4) + 8
