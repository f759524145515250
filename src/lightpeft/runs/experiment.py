"""Plain and light PEFT side by side: train, save, measure, and put it all in a `Result`."""

import dataclasses
import gc
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightpeft.checkpoint import require_unused, save
from lightpeft.config import LightConfig
from lightpeft.outputs import Output, check_file, check_folder, check_room, locked, written_folder
from lightpeft.plan import Plan
from lightpeft.processes import Processes
from lightpeft.report import (
    Curve,
    Measurement,
    Result,
    SeedMetrics,
    environment,
    over_seeds,
    seed_cuts,
    write_report,
)
from lightpeft.report.data import CurveKind
from lightpeft.runs.engines import DeepSpeed
from lightpeft.runs.fit import Outcome, Setting, fit
from lightpeft.runs.speed import ESTIMATION, Speed, measure_speed
from lightpeft.runs.two_phases import fit_in_two_phases
from lightpeft.scores import Scores
from lightpeft.surgery import parameter_counts
from lightpeft.tasks import TaskRecord

LIGHT, PLAIN, SCORES = "light", "plain", "scores.safetensors"
RESULT, PAGE = "result.json", "report.html"
_CURVES: dict[CurveKind, str] = {"loss": "loss", "metric": "eval_main"}
"""The entries of the Trainer's history that are drawn."""

_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")


@dataclass(frozen=True)
class Finished:
    """What is told of a run when its model is gone."""

    main: float
    """The task's main metric."""

    seconds: float | None
    step_seconds: dict[str, float]
    history: list[dict[str, float]]
    parameters: tuple[int, int]
    """Of the encoder, and of PEFT."""

    plan: Plan | None
    scores: Scores | None
    cut_step: int | None
    measured: float | None
    """What came of a target."""

    @classmethod
    def of(cls, outcome: Outcome) -> "Finished":
        """What stays of an outcome."""
        session = None if outcome.light is None else outcome.light.session
        return cls(
            main=outcome.main,
            seconds=outcome.seconds,
            step_seconds=outcome.step_seconds,
            history=outcome.history,
            parameters=parameter_counts(outcome.model),
            plan=None if session is None else session.plan,
            scores=None if session is None else session.scores,
            cut_step=None if session is None else session.cut_step,
            measured=None if session is None else session.measured,
        )


Pair = tuple[int, Finished | None, Finished]
"""A seed with its plain and its light run."""


@dataclass(frozen=True)
class Experiment:
    """What is run: one setting, light PEFT, with or without plain PEFT, over some seeds."""

    setting: Setting
    light: LightConfig
    seeds: tuple[int, ...]
    compare: bool
    task: TaskRecord
    """What `evaluate` and `predict` need to know of the task, kept in the checkpoint."""

    repeats: int = 10
    """Timed repeats of each action."""

    report_to: tuple[str, ...] = ()
    """Names of transformers' integrations that get the Trainers' logs."""

    engine: DeepSpeed | None = None
    """What trains the cut model in parts; plain PEFT is not compared then."""


def run_experiment(
    experiment: Experiment,
    out: Path,
    *,
    kind: Literal["demo", "train"],
    title: str,
    command: str,
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Run it, and write `light/`, `plain/`, `scores.safetensors`, `result.json` and `report.html`.

    The first seed's models are saved and measured; the metric is the mean over seeds.

    Of several processes that run it together, the first one writes and measures.

    Raises:
        OutputError: `out` is in use, cannot be written, or holds what would be lost.
    """
    processes = Processes.of_group()
    with ExitStack() as stack:
        with processes.agreed():
            if processes.is_first:
                stack.enter_context(locked(out))
                _check_unused(experiment, out, resume)
        pairs, speeds = _run(experiment, out, resume, progress)
        return processes.decided(lambda: _written(experiment, pairs, speeds, out, kind, title, command))


def _check_unused(experiment: Experiment, out: Path, resume: bool) -> None:
    check_outputs(out, compare=experiment.compare)
    if not resume and experiment.setting.training.save_steps is not None:
        for folder in checkpoint_folders(experiment, out):
            require_unused(folder, "Go on with it by --resume")


def check_outputs(out: Path, *, compare: bool) -> None:
    """Refuse a run's folder in which something would be lost or nothing can be written.

    Raises:
        OutputError: what is in the way.
    """
    check_room(out)
    check_folder(out / LIGHT, Output.LIGHT)
    if compare:
        check_folder(out / PLAIN, Output.PLAIN)
    check_file(out / SCORES, Output.SCORES)
    check_file(out / RESULT, Output.RESULT)
    check_file(out / PAGE, Output.PAGE)


def _run(
    experiment: Experiment, out: Path, resume: bool, progress: bool
) -> tuple[list[Pair], dict[str, Speed]]:
    """The runs of all seeds, and the speeds of the first one's models."""
    first, *others = experiment.seeds
    pair, speeds = _first_seed(experiment, first, out, resume, progress)
    return [pair, *(_further_seed(experiment, seed, out, resume, progress) for seed in others)], speeds


def _written(
    experiment: Experiment,
    pairs: Sequence[Pair],
    speeds: dict[str, Speed],
    out: Path,
    kind: Literal["demo", "train"],
    title: str,
    command: str,
) -> Result:
    _, plain, light = pairs[0]
    result = Result(
        kind=kind,
        title=title,
        light=_light_measurement(experiment, pairs, speeds, out),
        vanilla=None if plain is None else _plain_measurement(experiment, pairs, speeds, out),
        seeds=experiment.seeds,
        per_seed=tuple(_seed_metrics(*run) for run in pairs),
        curves=tuple(curve for s, p, li in pairs for curve in _curves(PLAIN, p, s) + _curves(LIGHT, li, s)),
        environment=environment(),
        config=_config(experiment),
        command=command,
        peft=experiment.setting.peft.title,
        seed_cuts=seed_cuts([_plan_of(run) for _, _, run in pairs]),
    )
    result.save(out / RESULT)
    write_report(out / PAGE, result, light.plan, light.scores)
    return result


def _first_seed(
    experiment: Experiment, seed: int, out: Path, resume: bool, progress: bool
) -> tuple[Pair, dict[str, Speed]]:
    """Train both, save and measure them: the only two models that are in memory at once."""
    light = _fit(experiment, experiment.light, seed, out, resume, progress)
    plain = _fit(experiment, None, seed, out, resume, progress) if experiment.compare else None
    speeds = Processes.of_group().decided(lambda: _saved_and_measured(experiment, out, plain, light))
    return (seed, None if plain is None else Finished.of(plain), Finished.of(light)), speeds


def _saved_and_measured(
    experiment: Experiment, out: Path, plain: Outcome | None, light: Outcome
) -> dict[str, Speed]:
    _save(experiment, out, plain, light)
    return _measure(experiment, plain, light)


def _further_seed(experiment: Experiment, seed: int, out: Path, resume: bool, progress: bool) -> Pair:
    """Train one after the other; a Trainer and its model refer to each other, and go when asked to."""
    gc.collect()
    light = Finished.of(_fit(experiment, experiment.light, seed, out, resume, progress))
    gc.collect()
    plain = _fit(experiment, None, seed, out, resume, progress) if experiment.compare else None
    return seed, None if plain is None else Finished.of(plain), light


def _plan_of(light: Finished) -> Plan:
    assert light.plan is not None
    return light.plan


def _seed_metrics(seed: int, plain: Finished | None, light: Finished) -> SeedMetrics:
    return SeedMetrics(
        seed=seed,
        vanilla=None if plain is None else plain.main,
        light=light.main,
        vanilla_seconds=None if plain is None else plain.seconds,
        light_seconds=light.seconds,
    )


def _fit(
    experiment: Experiment, light: LightConfig | None, seed: int, out: Path, resume: bool, progress: bool
) -> Outcome:
    training = dataclasses.replace(experiment.setting.training, seed=seed)
    setting = dataclasses.replace(experiment.setting, training=training)
    folder = checkpoint_folder(out, PLAIN if light is None else LIGHT, seed)
    goes_on = Processes.of_group().decided(lambda: resume and folder.is_dir())
    how: dict[str, Any] = {"resume": goes_on, "progress": progress, "report_to": experiment.report_to}
    if light is None or experiment.engine is None:
        return fit(setting, light, folder, **how)
    return fit_in_two_phases(setting, light, folder, experiment.engine, **how)


def checkpoint_folder(out: Path, method: str, seed: int) -> Path:
    """Where the Trainer of one run keeps its checkpoints."""
    return out / "checkpoints" / f"{method}-{seed}"


def checkpoint_folders(experiment: Experiment, out: Path) -> list[Path]:
    """Those of all runs of an experiment."""
    methods = (LIGHT, PLAIN) if experiment.compare else (LIGHT,)
    return [checkpoint_folder(out, method, seed) for seed in experiment.seeds for method in methods]


def _save(experiment: Experiment, out: Path, plain: Outcome | None, light: Outcome) -> None:
    tokenizer = experiment.setting.tokenizer
    save(light.model, out / LIGHT, tokenizer=tokenizer, metrics=light.metrics, task=experiment.task.as_json())
    assert light.light is not None
    light.light.prove(light.model, out / LIGHT)
    if light.light.scores is not None:
        light.light.scores.save(out / SCORES)
    if plain is not None:
        with written_folder(out / PLAIN, Output.PLAIN) as beside:
            plain.model.save_pretrained(str(beside), save_embedding_layers=False)
            tokenizer.save_pretrained(beside)


def _measure(experiment: Experiment, plain: Outcome | None, light: Outcome) -> dict[str, Speed]:
    models = {LIGHT: light.model} if plain is None else {PLAIN: plain.model, LIGHT: light.model}
    estimate = None if plain is None else (PLAIN, experiment.light.estimation)
    batch = typical_batch(experiment.setting, light)
    prefixes = {LIGHT: experiment.light.prefix}
    return measure_speed(models, batch, experiment.repeats, estimate, prefixes)


def typical_batch(setting: Setting, outcome: Outcome) -> dict[str, Tensor]:
    """The first validation examples as one padded batch on the model's device."""
    rows = [setting.validation[i] for i in range(min(setting.training.batch_size, len(setting.validation)))]
    device = next(outcome.model.parameters()).device
    batch = setting.collator(rows)
    return {name: torch.as_tensor(value).to(device) for name, value in batch.items()}


def _plain_measurement(
    experiment: Experiment,
    pairs: Sequence[Pair],
    speeds: dict[str, Speed],
    out: Path,
) -> Measurement:
    runs = [plain for _, plain, _ in pairs if plain is not None]
    return Measurement(**_shared_numbers(experiment, runs, speeds[PLAIN], out / PLAIN))


def _light_measurement(
    experiment: Experiment,
    pairs: Sequence[Pair],
    speeds: dict[str, Speed],
    out: Path,
) -> Measurement:
    runs = [light for _, _, light in pairs]
    measured = speeds.get(ESTIMATION)
    in_run = runs[0].step_seconds.get("estimating")
    return Measurement(
        **_shared_numbers(experiment, runs, speeds[LIGHT], out / LIGHT),
        estimation_steps=_plan_of(runs[0]).estimation_steps,
        estimation_step_seconds=in_run if measured is None else measured.train_step.median,
        target_measured=runs[0].measured,
    )


def _shared_numbers(
    experiment: Experiment, runs: Sequence[Finished], speed: Speed, folder: Path
) -> dict[str, Any]:
    assert speed.inference is not None
    encoder, peft = runs[0].parameters
    rows = min(experiment.setting.training.batch_size, len(experiment.setting.validation))
    return {
        "metric": statistics.fmean(run.main for run in runs),
        "metric_name": "+".join(experiment.setting.spec.main),
        "train_step_seconds": speed.train_step.median,
        "inference_seconds": speed.inference.median / rows,
        "peak_memory_bytes": speed.train_peak_bytes,
        "encoder_parameters": encoder,
        "peft_parameters": peft,
        "checkpoint_bytes": checkpoint_bytes(folder),
        "run_seconds": _mean([run.seconds for run in runs]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    found = over_seeds(values)
    return None if found is None else found.mean


def checkpoint_bytes(folder: Path) -> int:
    """Bytes stored per task; the tokenizer, which is the base's, does not count."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files if not file.name.startswith(_TOKENIZER_FILES))


def _curves(label: str, run: Finished | None, seed: int) -> list[Curve]:
    if run is None:
        return []
    curves = []
    for kind, key in _CURVES.items():
        points = [(int(entry["step"]), float(entry[key])) for entry in run.history if key in entry]
        if points:
            steps, values = zip(*dict(points).items(), strict=True)
            curves.append(Curve(label, kind, steps, values, run.cut_step, seed))
    return curves


def _config(experiment: Experiment) -> dict[str, Any]:
    return {
        "model": experiment.setting.model,
        "task": experiment.task.as_json(),
        "training": dataclasses.asdict(experiment.setting.training),
        "peft": dataclasses.asdict(experiment.setting.peft),
        "light": experiment.light.to_dict(),
        "processes": Processes.of_group().count,
    }
