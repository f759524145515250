"""A run that ends at the cut, and one of another Trainer that goes on from its checkpoint."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import save_base
from tests.support.runs import DEFAULT, ESTIMATION, FASTER, STEPS, Sentences, arguments, fresh_model, trainer
from torch import Tensor
from transformers import Trainer

from lightpeft import ConfigError, LightCallback, LightTrainer, PrefixConfig, load, save

LIGHT = dataclasses.replace(FASTER, prefix=PrefixConfig(frozen=False))
"""A plain Trainer drops out in the lowest layers, too."""

SAVED = {"save_strategy": "steps", "save_steps": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), dropout=0.1)


def first_phase(kind: str, base: Path, folder: Path, **options: Any) -> Trainer:
    """By a LightTrainer, or an ordinary one with the callback."""
    if kind == "callback":
        light = LightCallback(LIGHT, stop_after_cut=True)
        return trainer(base, folder, kind=Trainer, callbacks=[light], **SAVED | options)
    return LightTrainer(
        model=fresh_model(base),
        args=arguments(folder, **SAVED | options),
        train_dataset=Sentences(),
        light=LIGHT,
        stop_after_cut=True,
    )


def tuned(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".lora_" in name}


@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_a_plain_trainer_goes_on_with_schedule_data_and_steps(
    kind: str, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trainer(base, tmp_path / "whole", LIGHT)
    whole.train()
    first = first_phase(kind, base, tmp_path / "run")
    with caplog.at_level(logging.INFO, logger="lightpeft"):
        first.train()
    assert first.state.global_step == ESTIMATION
    checkpoint = tmp_path / "run" / f"checkpoint-{ESTIMATION}"
    assert f"the first phase is over after {ESTIMATION} of {STEPS} steps: {checkpoint}" in caplog.text

    model = load(checkpoint, base, is_trainable=True)
    second = Trainer(model=model, args=arguments(tmp_path / "run"), train_dataset=Sentences())
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.state.global_step == STEPS
    found, expected = tuned(model), tuned(whole.model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    save(model, tmp_path / "light")


@pytest.mark.parametrize(
    ("options", "restarts", "named"),
    [
        ({"save_strategy": "no"}, False, "save_strategy='no'"),
        ({"save_only_model": True}, False, "save_only_model=True"),
        ({}, True, "restart_schedule=True"),
    ],
)
def test_a_first_phase_that_could_not_be_gone_on_from_is_refused(
    options: dict[str, Any], restarts: bool, named: str, base: Path, tmp_path: Path
) -> None:
    run = first_phase("trainer", base, tmp_path / "run", **options)
    run.light.session.config = dataclasses.replace(DEFAULT, restart_schedule=restarts)
    with pytest.raises(ConfigError, match=f"cannot be with {named}"):
        run.train()
    assert run.state.global_step == 0
