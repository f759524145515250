"""One fine-tuning run: plain PEFT or light PEFT, with everything else the same."""

import functools
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from lightpeft.config import LightConfig
from lightpeft.errors import ConfigError, did_you_mean
from lightpeft.processes import Processes
from lightpeft.run_config import PeftOptions, TrainingConfig
from lightpeft.runs.joining import counts_items
from lightpeft.runs.limits import check_tokens, within_positions
from lightpeft.runs.models import (
    check_architecture,
    load_peft_model,
    load_tokenizer,
    outline,
    pad_as,
)
from lightpeft.runs.quantization import quantization_config
from lightpeft.tasks import Collator, TaskData, TaskKind, TaskSpec, compute_metrics_for, find_kind
from lightpeft.training import KeepingTrainer, LightCallback, LightTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What both methods share: model, task features, training."""

    model: str
    spec: TaskSpec
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    validation: Dataset
    validation_rows: Dataset
    """What `validation` was made of."""

    training: TrainingConfig
    peft: PeftOptions

    @property
    def kind(self) -> TaskKind:
        """What this kind of task needs."""
        return find_kind(self.spec.objective)

    @property
    def collator(self) -> Collator:
        """Makes one padded batch of rows of `train` or `validation`."""
        return self.kind.collator(self.tokenizer)

    def load_model(self) -> PeftModel:
        """The base with its adapter, as every run of this setting begins."""
        head, training, quantization = self.kind.head(self.spec), self.training, None
        if training.quantization is not None:
            shape = outline(self.model, self.kind.auto_class)
            quantization = quantization_config(training.quantization, shape, training.precision)
        how = head, self.peft, training.seed, self.spec.objective
        model = load_peft_model(self.model, *how, quantization=quantization)
        pad_as(model, self.tokenizer)
        return model


@dataclass
class Outcome:
    """A finished run."""

    model: PeftModel
    metrics: dict[str, float]
    history: list[dict[str, float]]
    step_seconds: dict[str, float]
    """Median seconds per step by phase: `plain`, or `estimating` and `cut`."""

    seconds: float | None
    """Wall-clock seconds of the whole training, evaluations included; None where the run was resumed."""

    light: LightCallback | None = None

    @property
    def main(self) -> float:
        """The task's main metric."""
        return self.metrics["main"]


def make_setting(model: str, task: TaskData, training: TrainingConfig, peft: PeftOptions) -> Setting:
    """Tokenise a task for a model.

    Raises:
        ConfigError: the tokenizer cannot be loaded, or an option does not fit the task.
        TaskError: a split has nothing to learn.
    """
    kind = find_kind(task.spec.objective)
    if training.quantization is not None and peft.form != "lora":
        raise ConfigError(
            f"training.quantization {training.quantization} is for LoRA; {peft.title} need a base of floats."
        )
    check_architecture(model, kind)
    tokenizer = load_tokenizer(model)
    shape = outline(model, kind.auto_class)
    training = within_positions(training, shape, model)
    splits = {
        name: kind.features(split, tokenizer, training, judged=name == "validation")
        for name, split in (("train", task.train), ("validation", task.validation))
    }
    for name, split in splits.items():
        check_tokens(split, tokenizer, shape, f"{name} text")
    check_steps(training, len(splits["train"]))
    return Setting(
        model=model,
        spec=task.spec,
        validation_rows=task.validation,
        tokenizer=tokenizer,
        training=training,
        peft=peft,
        **splits,
    )


def check_reporting(names: Sequence[str]) -> None:
    """Refuse, before anything is loaded, integrations that transformers does not know or have here.

    Raises:
        ConfigError: naming those it has.
    """
    unknown = [name for name in names if name not in INTEGRATION_TO_CALLBACK]
    if unknown:
        known = sorted(INTEGRATION_TO_CALLBACK)
        raise ConfigError(
            f"report_to names {unknown[0]!r}, which transformers does not know."
            f"{did_you_mean(unknown[0], known)} There are {', '.join(known)}."
        )
    missing = [name for name in names if name not in get_available_reporting_integrations()]
    if missing:
        raise ConfigError(f"report_to names {missing[0]}, which is not installed: pip install {missing[0]}")


def check_steps(training: TrainingConfig, rows: int) -> None:
    """Refuse a warm-up that is longer than the run on so many rows; warn of intervals that are.

    Raises:
        ConfigError: the warm-up is.
    """
    steps = training.steps(rows, Processes.of_group().count)
    training.check_warmup(steps)
    for name in ("eval_steps", "save_steps"):
        if (getattr(training, name) or 0) > steps:
            logger.warning("training.%s is more than the %d steps of this run", name, steps)
    if training.batch_size > rows:
        logger.warning("training.batch_size is %d, but there are only %d rows", training.batch_size, rows)


def fit(
    setting: Setting,
    light: LightConfig | None,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    report_to: Sequence[str] = (),
) -> Outcome:
    """Train plain PEFT (`light` None) or light PEFT, and evaluate.

    Args:
        folder: for the Trainer's checkpoints.
        resume: go on from the newest complete checkpoint in `folder`.
        report_to: names of transformers' integrations that get the Trainer's log.
    """
    model = setting.load_model()
    run = prepare(setting, model, light, folder, progress=progress, report_to=report_to)
    start = time.perf_counter()
    outcome = run.train(resume=resume)
    seconds = time.perf_counter() - start
    logger.info(
        "%s, seed %d: %s %.4f after %d steps in %.0f s",
        f"plain {setting.peft.title}" if light is None else "light PEFT",
        setting.training.seed,
        "+".join(setting.spec.main),
        outcome.main,
        run.trainer.state.global_step,
        seconds,
    )
    return outcome


@dataclass(frozen=True)
class Run:
    """A run that is set up and has not begun."""

    setting: Setting
    model: PeftModel
    trainer: KeepingTrainer
    clock: "_StepClock"

    def train(self, *, resume: bool | Path = False) -> Outcome:
        """Train, and evaluate; once.

        Args:
            resume: go on from this checkpoint, or from the newest complete one in the run's folder.
        """
        start = time.perf_counter()
        self.trainer.train(resume_from_checkpoint=str(resume) if isinstance(resume, Path) else resume or None)
        seconds = time.perf_counter() - start
        metrics = {
            key.removeprefix("eval_"): value
            for key, value in _last_evaluation(self.trainer).items()
            if key.startswith("eval_") and not key.endswith(("_runtime", "_per_second"))
        }
        return Outcome(
            model=self.model,
            metrics=metrics,
            history=self.trainer.state.log_history,
            step_seconds=self.clock.medians(),
            seconds=None if resume else seconds,
            light=self.trainer.light if isinstance(self.trainer, LightTrainer) else None,
        )


def prepare(
    setting: Setting,
    model: PeftModel,
    light: LightConfig | None,
    folder: Path,
    *,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: Sequence[str] = (),
    make_trainer: Callable[..., KeepingTrainer] | None = None,
) -> Run:
    """Set up plain PEFT (`light` None) or light PEFT.

    Args:
        model: what is trained, as `Setting.load_model` gives it.
        folder: for the Trainer's checkpoints.
        callbacks: of the Trainer, beside its own.
        report_to: names of transformers' integrations that get the Trainer's log.
        make_trainer: makes another Trainer than these two have.
    """
    clock = _StepClock()
    options: dict[str, Any] = {
        "model": model,
        "args": training_arguments(
            setting.training, folder, progress, setting.kind.evaluation_batches, report_to
        ),
        "train_dataset": setting.train,
        "eval_dataset": setting.validation,
        "processing_class": setting.tokenizer,
        "data_collator": setting.collator,
        "compute_metrics": compute_metrics_for(
            setting.spec, setting.validation_rows, setting.validation, setting.tokenizer
        ),
        "preprocess_logits_for_metrics": setting.kind.kept,
        "callbacks": [clock, *callbacks],
    }
    if make_trainer is None:
        make_trainer = KeepingTrainer if light is None else functools.partial(LightTrainer, light=light)
    trainer = make_trainer(**options)
    trainer.evaluates_in_order = setting.kind.in_order
    if setting.kind.writes_to_be_scored:
        trainer.written = setting.kind.outputs
    trainer.pop_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_Bar)
    if isinstance(trainer, LightTrainer):
        clock.session = trainer.light
    if trainer.args.world_size > 1:
        trainer.args.average_tokens_across_devices = counts_items(model, _first_batch(setting, model))
    return Run(setting, model, trainer, clock)


def _first_batch(setting: Setting, model: PeftModel) -> dict[str, Tensor]:
    rows = [setting.train[index] for index in range(min(2, len(setting.train)))]
    device = next(model.parameters()).device
    return {name: torch.as_tensor(value).to(device) for name, value in setting.collator(rows).items()}


def _last_evaluation(trainer: Trainer) -> dict[str, float]:
    """The evaluation after the last step, made now if the run did not end with one."""
    for entry in reversed(trainer.state.log_history):
        if "eval_main" in entry and entry["step"] == trainer.state.global_step:
            return entry
    return trainer.evaluate()


def training_arguments(
    training: TrainingConfig,
    folder: Path,
    progress: bool,
    evaluation_batches: int,
    report_to: Sequence[str] = (),
) -> TrainingArguments:
    """The Trainer's arguments for a run."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=evaluation_batches * training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        max_grad_norm=training.max_grad_norm,
        weight_decay=training.weight_decay,
        bf16=training.precision == "bfloat16",
        fp16=training.precision == "float16",
        # The Trainer refuses bfloat16 on a machine without accelerator unless it is told.
        use_cpu=not torch.accelerator.is_available(),
        seed=training.seed,
        eval_strategy="epoch" if training.eval_steps is None else "steps",
        eval_steps=training.eval_steps,
        save_strategy="no" if training.save_steps is None else "steps",
        save_steps=training.save_steps or 500,
        save_total_limit=2,
        logging_steps=10,
        log_level_replica="passive",  # the Trainer would make every process but the first warn again
        train_sampling_strategy="group_by_length" if training.groups_lengths else "random",
        report_to=list(report_to),
        disable_tqdm=not (progress and sys.stderr.isatty()),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class _Bar(ProgressCallback):
    """The Trainer's progress bar without its log lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        pass


class _StepClock(TrainerCallback):
    """Seconds per optimizer step, by phase."""

    def __init__(self) -> None:
        self.session: LightCallback | None = None
        self._seconds: dict[str, list[float]] = {}
        self._start = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start = time.perf_counter()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        phase = "plain" if self.session is None else self.session.session.phase
        self._seconds.setdefault(phase, []).append(time.perf_counter() - self._start)

    def medians(self) -> dict[str, float]:
        return {phase: statistics.median(values) for phase, values in self._seconds.items()}
