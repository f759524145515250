"""Whole runs with a frozen prefix: the cache changes no loss, whatever the Trainer does around it."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.frozen import examples_run
from tests.support.models import save_base
from tests.support.runs import Sentences, arguments, fresh_model, trainer
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from lightpeft import Budget, EstimationConfig, LightCallback, LightConfig, LightTrainer, PrefixConfig

STEPS, ESTIMATION, GIB = 28, 4, 2**-30
"""Over 32 examples, four a step: three and a half passes."""

CACHED = LightConfig(
    estimation=EstimationConfig(steps=ESTIMATION),
    budget=Budget(frozen_layers=2),
    learning_rate_factor=1.0,
)
ON_DISK = dataclasses.replace(CACHED, prefix=PrefixConfig(memory=0.0))
SMALL = dataclasses.replace(CACHED, prefix=PrefixConfig(memory=2000 * GIB, disk=5000 * GIB))
"""Room for some of the examples."""

WITHOUT = dataclasses.replace(CACHED, prefix=PrefixConfig(cache=False))


class Losses(LightTrainer):
    """Notes the loss of every batch, and how many examples the lowest layer computes after the cut."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[Tensor] = []
        self.computed: list[int] = []

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        with examples_run(model) as runs:
            loss = super().training_step(model, *args, **kwargs)
        self.losses.append(loss)
        self.computed.append(sum(runs))
        return loss


def padded_to_the_longest(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: value[:, :longest] if value.dim() == 2 else value for name, value in batch.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), dropout=0.1)


def run(base: Path, folder: Path, light: LightConfig, **options: Any) -> Losses:
    found: Losses = trainer(base, folder, light, kind=Losses, **{"max_steps": STEPS, **options})
    found.data_collator = padded_to_the_longest
    return found


def losses(found: Losses) -> Tensor:
    return torch.stack(found.losses)


@pytest.fixture(scope="module")
def uncached(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Tensor]:
    """The losses of a run without cache, by the Trainer's options; each is run once."""
    known: dict[str, Tensor] = {}

    def curve(options: dict[str, Any]) -> Tensor:
        if str(options) not in known:
            found = run(base, tmp_path_factory.mktemp("without"), WITHOUT, **options)
            found.train()
            known[str(options)] = losses(found)
        return known[str(options)]

    return curve


CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in dataclasses.fields(TrainingArguments)}
)
OPTIONS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "in order": {"train_sampling_strategy": "sequential"},
    "workers": {"dataloader_num_workers": 2},
    "accumulation": {"gradient_accumulation_steps": 2, "max_steps": STEPS // 2},
    "evaluations": {"eval_strategy": "steps", "eval_steps": 5},
    "checkpointing": {CHECKPOINTING: True},
}


@pytest.mark.parametrize("options", [pytest.param(value, id=name) for name, value in OPTIONS.items()])
def test_the_loss_curve_is_the_same(
    options: dict[str, Any], base: Path, uncached: Callable[[dict[str, Any]], Tensor], tmp_path: Path
) -> None:
    found = run(base, tmp_path, CACHED, **options)
    found.train()
    torch.testing.assert_close(losses(found), uncached(options), rtol=1e-5, atol=1e-5)
    assert sum(found.computed[-8:]) == 0, "known examples went through the frozen layers"


@pytest.mark.parametrize("light", [ON_DISK, SMALL], ids=["on disk", "little room"])
def test_wherever_it_is_kept(
    light: LightConfig, base: Path, uncached: Callable[[dict[str, Any]], Tensor], tmp_path: Path
) -> None:
    found = run(base, tmp_path, light)
    found.train()
    torch.testing.assert_close(losses(found), uncached({}), rtol=1e-5, atol=1e-5)
    computed = sum(found.computed[-8:])
    assert computed == 0 if light is ON_DISK else 0 < computed < 32


def truncate(file: int) -> None:
    os.ftruncate(file, 100)


def damage(file: int) -> None:
    os.pwrite(file, b"\xff" * 100, 1000)


@pytest.mark.parametrize("harm", [truncate, damage])
def test_a_damaged_file_is_noticed_and_written_anew(
    harm: Callable[[int], None], base: Path, uncached: Callable[[dict[str, Any]], Tensor], tmp_path: Path
) -> None:
    class Harm(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 17:
                harm(found.light.session._prefix._cache._file)  # type: ignore[union-attr]

    found = run(base, tmp_path, ON_DISK)
    found.add_callback(Harm())
    found.train()
    torch.testing.assert_close(losses(found), uncached({}), rtol=1e-5, atol=1e-5)
    assert sum(found.computed[17:]) > 0
    assert sum(found.computed[-3:]) == 0


@pytest.mark.parametrize("step", [3, 14], ids=["before the cut", "after it"])
def test_a_resumed_run_goes_on_the_same(step: int, base: Path, tmp_path: Path) -> None:
    whole = run(base, tmp_path, CACHED, save_strategy="steps", save_steps=1)
    whole.train()
    again = run(base, tmp_path, CACHED, save_strategy="steps", save_steps=1)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    torch.testing.assert_close(losses(again), losses(whole)[step:], rtol=1e-5, atol=1e-5)
    assert sum(again.computed[-4:]) == 0


def test_in_anybodys_trainer(
    base: Path, uncached: Callable[[dict[str, Any]], Tensor], tmp_path: Path
) -> None:
    callback = LightCallback(CACHED)
    model: PeftModel = fresh_model(base)
    found = Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=STEPS, logging_strategy="steps", logging_steps=1),
        train_dataset=Sentences(),
        data_collator=padded_to_the_longest,
        callbacks=[callback],
    )
    found.train()
    curve = torch.tensor([entry["loss"] for entry in found.state.log_history if "loss" in entry])
    torch.testing.assert_close(curve, uncached({}), rtol=1e-4, atol=1e-4)
    assert callback.session._prefix is None
    with examples_run(model) as runs, torch.no_grad():
        model.eval()(**padded_to_the_longest([Sentences()[0]]))
    assert runs == [1], "after training the model runs all of its layers"


def test_what_is_saved_is_proved_without_it(base: Path, tmp_path: Path) -> None:
    """A saved model is loaded and must give the same outputs to the last bit, while the prefix is in use."""
    found = run(base, tmp_path, CACHED, save_strategy="steps", save_steps=10)
    found.train()
    assert (tmp_path / "checkpoint-20").is_dir()
