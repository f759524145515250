"""Batches of similar length: in an order that a resumed run goes on in."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import assert_identical, save_base
from tests.support.runs import STEPS, trainer, weights
from transformers.trainer_pt_utils import LengthGroupedSampler

from lightpeft.run_config import TrainingConfig
from lightpeft.runs.fit import training_arguments
from lightpeft.training.order import ResumableLengthSampler

LENGTHS = [5 + 7 * row % 31 for row in range(64)]
GROUPED: dict[str, Any] = {
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "steps",
    "save_steps": 1,
}


def order(epoch: int, seed: int = 3) -> list[int]:
    sampler = ResumableLengthSampler(LengthGroupedSampler(4, lengths=LENGTHS), seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epochs_order_follows_from_seed_and_epoch_alone() -> None:
    first = order(0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert order(0) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(first) == sorted(order(1)) == list(range(64))
    assert len({tuple(order(epoch, seed)) for epoch in (0, 1) for seed in (3, 5)}) == 4


def test_batches_are_of_similar_length() -> None:
    rows = order(0)
    spans = [
        max(lengths) - min(lengths)
        for start in range(4, 64, 4)
        if (lengths := [LENGTHS[row] for row in rows[start : start + 4]])
    ]
    assert sum(spans) / len(spans) < (max(LENGTHS) - min(LENGTHS)) / 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), dropout=0.1)


def test_resume_goes_on_in_the_same_order(base: Path, tmp_path: Path) -> None:
    """Out of the middle of the first epoch (before the cut), its end, and the middle of the second one."""
    whole = trainer(base, tmp_path / "whole", **GROUPED)
    whole.train()
    for step in (3, 8, 9):
        for number in range(1, step + 1):
            name = f"checkpoint-{number}"
            shutil.copytree(tmp_path / "whole" / name, tmp_path / str(step) / name)
        run = trainer(base, tmp_path / str(step), **GROUPED)
        run.train(resume_from_checkpoint=True)
        assert run.state.global_step == STEPS
        assert_identical(weights(run.model), weights(whole.model))


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, "group_by_length"), ({"packing": True}, "random"), ({"group_by_length": False}, "random")],
)
def test_lengths_are_grouped_unless_rows_are_packed(
    options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    made = training_arguments(TrainingConfig(save_steps=1, **options), tmp_path, False, 1)
    assert made.train_sampling_strategy == expected
