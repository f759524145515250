"""A light run under DeepSpeed: estimation and cut in whole models (DDP), the rest in parts."""

import dataclasses
import functools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers.trainer_utils import SaveStrategy

from lightpeft.checkpoint import PRUNING, load
from lightpeft.config import LightConfig
from lightpeft.errors import ConfigError
from lightpeft.processes import Processes
from lightpeft.runs.engines import DeepSpeed
from lightpeft.runs.fit import Outcome, Run, Setting, prepare
from lightpeft.runs.models import pad_as
from lightpeft.training import LightTrainer, SecondPhaseTrainer, take_values, trained_values


def fit_in_two_phases(
    setting: Setting,
    light: LightConfig,
    folder: Path,
    engine: DeepSpeed,
    *,
    resume: bool = False,
    progress: bool = True,
    report_to: Sequence[str] = (),
) -> Outcome:
    """Train light PEFT: up to the cut as DDP does it, from there on under DeepSpeed; and evaluate.

    Args:
        folder: for the checkpoints of the first phase, the last of which the second one begins with.
        resume: go on from the newest complete checkpoint in `folder`.
        report_to: names of transformers' integrations that get the Trainer's log.

    Raises:
        ConfigError: what a model writes would be scored.
    """
    if setting.kind.writes_to_be_scored:
        raise ConfigError(
            f"{setting.spec.name} is judged by what the model writes, and a model in parts writes nothing "
            "here. Start without DeepSpeed."
        )
    start = time.perf_counter()
    how: dict[str, Any] = {"progress": progress, "report_to": report_to}
    first, trainer = _set_up(setting, light, folder, how)
    checkpoint, kept = _first_phase(first, trainer, resume)
    model = _loaded(checkpoint, setting)
    with engine.at_work():
        second = prepare(setting, model, None, folder, make_trainer=SecondPhaseTrainer, **how)
        second.trainer.args.save_strategy = SaveStrategy.NO
        engine.require_in(second.trainer)
        outcome = second.train(resume=checkpoint)
        values = trained_values(model)
    take_values(kept, values)
    if setting.training.save_steps is None:
        Processes.of_group().decided(lambda: shutil.rmtree(folder))
    return dataclasses.replace(
        outcome,
        model=kept,
        step_seconds=first.clock.medians() | {"cut": outcome.step_seconds["plain"]},
        seconds=None if resume else time.perf_counter() - start,
        light=trainer.light,
    )


def _set_up(
    setting: Setting, light: LightConfig, folder: Path, how: dict[str, Any]
) -> tuple[Run, LightTrainer]:
    """A first phase, which needs a checkpoint only at its end."""
    training = setting.training
    steps = training.save_steps or training.steps(len(setting.train), Processes.of_group().count)
    saving = dataclasses.replace(setting, training=dataclasses.replace(training, save_steps=steps))
    ends_at_cut = functools.partial(LightTrainer, light=light, stop_after_cut=True)
    run = prepare(saving, setting.load_model(), light, folder, make_trainer=ends_at_cut, **how)
    return run, cast("LightTrainer", run.trainer)


def _first_phase(run: Run, trainer: LightTrainer, resume: bool) -> tuple[Path, PeftModel]:
    """Estimate and cut, or find that it was done: the checkpoint of the cut model, and that model."""
    newest = trainer.newest_checkpoint() if resume else None
    if newest is not None and (newest / PRUNING).is_file():
        model = _loaded(newest, run.setting)
        trainer.light.restore(model, newest)
        return newest, model
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    return Path(str(trainer.args.output_dir)) / f"checkpoint-{trainer.state.global_step}", run.model.to("cpu")


def _loaded(checkpoint: Path, setting: Setting) -> PeftModel:
    model = load(checkpoint, setting.model, is_trainable=True)
    pad_as(model, setting.tokenizer)
    return model
