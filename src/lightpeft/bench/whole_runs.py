"""`bench run`, one seed: whole runs of several methods in turns, with all that they cost."""

import dataclasses
import gc
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from lightpeft.bench.methods import PLAIN, Method
from lightpeft.bench.relay import Baton, Evaluation, MethodError, Turns, take_turns
from lightpeft.bench.speed import batches
from lightpeft.errors import LightPeftError
from lightpeft.report import environment
from lightpeft.report.units import lower_is_better
from lightpeft.runs import Outcome, Run, Setting, prepare, training_peak_bytes
from lightpeft.surgery import parameter_counts
from lightpeft.training.run_settings import data_digest

logger = logging.getLogger(__name__)

SLACK = 0.003
"""How far below plain LoRA's final metric a method counts as having reached it: .3 points."""


@dataclass(frozen=True)
class RunBenchmark:
    """What is put side by side."""

    setting: Setting
    methods: tuple[Method, ...]
    chunk: int = 10
    """Optimizer steps of one method before it is the next one's turn."""

    @property
    def metric_name(self) -> str:
        """The task's main metric."""
        return "+".join(self.setting.spec.main)

    def record(self) -> dict[str, Any]:
        """All that decides what comes out, but for seed and machine, as JSON values."""
        setting = self.setting
        training = dataclasses.asdict(setting.training)
        del training["seed"]
        return {
            "model": setting.model,
            "task": setting.spec.name,
            "metric": self.metric_name,
            "rows": {"train": len(setting.train), "validation": len(setting.validation)},
            "digests": {"train": data_digest(setting.train), "validation": data_digest(setting.validation)},
            "training": training,
            "lora": dataclasses.asdict(setting.peft.lora),
            "chunk": self.chunk,
            "methods": {method.key: self._record_of(method) for method in self.methods},
        }

    def _record_of(self, method: Method) -> dict[str, Any]:
        light = method.light_config(self.setting)
        return {"name": method.name, "light": None if light is None else light.to_dict()}


def run_seed(benchmark: RunBenchmark, seed: int, folder: Path) -> dict[str, Any]:
    """Run all methods on one seed, in turns, and return their numbers as JSON values.

    Loading the models and setting the runs up does not count; everything from there to the last evaluation
    does. Peak memory is that of a training step on each final model, measured apart and afterwards.

    Args:
        folder: for what the runs write on the way.

    Raises:
        MethodError: a method cannot run, or failed. Nothing is kept of the others.
    """
    finished = _train(benchmark, seed, folder)
    gc.collect()  # the optimizers, which would count as memory of whoever is measured
    peaks = _peaks(benchmark, {key: one.outcome.model for key, one in finished.items()})
    goal = _goal(benchmark, finished)
    return {
        "setting": benchmark.record(),
        "seed": seed,
        "methods": {
            key: one.numbers() | {"peak_memory_bytes": peaks[key], "reached_seconds": one.reached(goal)}
            for key, one in finished.items()
        },
        "goal": None if goal is None else goal.metric,
        "environment": environment(),
    }


@dataclass(frozen=True)
class _Goal:
    """A metric to reach."""

    metric: float
    from_above: bool

    def is_reached(self, metric: float) -> bool:
        return metric <= self.metric if self.from_above else metric >= self.metric


@dataclass(frozen=True)
class _Finished:
    """A method's run: what came out, and what it took."""

    outcome: Outcome
    seconds: float
    evaluation_seconds: float
    evaluations: tuple[Evaluation, ...]

    def numbers(self) -> dict[str, Any]:
        """As JSON values."""
        encoder, peft = parameter_counts(self.outcome.model)
        light = self.outcome.light
        plan = None if light is None else light.plan
        return {
            "metric": self.outcome.main,
            "seconds": self.seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "estimation_steps": None if plan is None else plan.estimation_steps,
            "encoder_parameters": encoder,
            "peft_parameters": peft,
            "curve": [dataclasses.asdict(one) for one in self.evaluations],
        }

    def reached(self, goal: _Goal | None) -> float | None:
        """Seconds until the first evaluation that reached the goal; None if none did."""
        if goal is None:
            return None
        return next((one.seconds for one in self.evaluations if goal.is_reached(one.metric)), None)


def _goal(benchmark: RunBenchmark, finished: Mapping[str, _Finished]) -> _Goal | None:
    """Plain LoRA's final metric less the slack, where plain LoRA was run."""
    if PLAIN.key not in finished:
        return None
    from_above = lower_is_better(benchmark.metric_name)
    return _Goal(finished[PLAIN.key].outcome.main + (SLACK if from_above else -SLACK), from_above)


def _train(benchmark: RunBenchmark, seed: int, folder: Path) -> dict[str, _Finished]:
    baton = Baton([method.key for method in benchmark.methods])
    try:
        runs = {
            method.key: partial(_finish, *_set_up(benchmark, method, seed, folder, baton))
            for method in benchmark.methods
        }
        return take_turns(baton, runs)
    finally:
        for method in benchmark.methods:
            shutil.rmtree(folder / method.key, ignore_errors=True)


def _set_up(
    benchmark: RunBenchmark, method: Method, seed: int, folder: Path, baton: Baton
) -> tuple[Run, Turns]:
    """A run that will begin as it would alone."""
    turns = Turns(method.key, baton, benchmark.chunk)
    try:
        setting = method.setting(benchmark.setting, seed)
        light = method.light_config(setting)
        place = folder / method.key
        run = prepare(setting, method.load(setting), light, place, progress=False, callbacks=[turns])
    except LightPeftError as error:
        raise MethodError(method.key, error) from error
    turns.keep_place()
    return run, turns


def _finish(run: Run, turns: Turns) -> _Finished:
    turns.begin()
    outcome = run.train()
    finished = _Finished(outcome, turns.end(), turns.evaluation_seconds, tuple(turns.evaluations))
    logger.info(
        "seed %d, %s %.4f in %.1f s, %.1f s of it evaluation",
        run.setting.training.seed,
        "+".join(run.setting.spec.main),
        outcome.main,
        finished.seconds,
        finished.evaluation_seconds,
    )
    return finished


def _peaks(benchmark: RunBenchmark, models: Mapping[str, PeftModel]) -> dict[str, int]:
    """Peak bytes of a training step of each model, with the others off its device."""
    device = next(next(iter(models.values())).parameters()).device
    batch = {
        name: value.to(device)
        for name, value in next(batches(benchmark.setting, benchmark.setting.train)).items()
    }
    for model in models.values():
        model.to("cpu")
    lights = {method.key: method.light_config(benchmark.setting) for method in benchmark.methods}
    prefixes = {key: None if light is None else light.prefix for key, light in lights.items()}
    peaks = {}
    for key, model in models.items():
        peaks[key] = training_peak_bytes(model.to(device), batch, prefixes[key])
        model.to("cpu")
    return peaks
