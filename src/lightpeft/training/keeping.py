"""A Trainer that takes care of its checkpoints: whole ones, of one run, one run in a folder at a time."""

import os
import uuid
import warnings
from collections.abc import Callable, Mapping, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import SaveStrategy, TrainOutput
from transformers.training_args import ParallelMode

from lightpeft.checkpoint import (
    RunMark,
    differences,
    discard_unfinished,
    keep_newest,
    last_complete_checkpoint,
    mark_complete,
    require_complete,
    require_unused,
    run_of,
    unmark,
)
from lightpeft.errors import CheckpointError, OutputError
from lightpeft.outputs import check_room, locked
from lightpeft.processes import Processes
from lightpeft.training.order import ResumableLengthSampler, say_epoch
from lightpeft.training.run_settings import run_settings


class KeepingTrainer(Trainer):
    """A `transformers.Trainer` that marks whole checkpoints and deletes old ones only after that."""

    run_mark: RunMark | None = None
    """While training: what its checkpoints are marked with."""

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train. `resume_from_checkpoint=True` takes this run's newest checkpoint that was written whole.

        Raises:
            CheckpointError: there is none, or only of runs with other settings.
            OutputError: `output_dir` cannot be written to, is in use by another run, or holds checkpoints
                that would be written over.
        """
        folder = Path(str(self.args.output_dir))
        settings = self._run_settings()
        warn_if_apart(self.args)
        processes = processes_of(self.args)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(self.newest_checkpoint())
        with ExitStack() as stack:
            with processes.agreed():
                if self.args.should_save:
                    check_room(folder)
                    stack.enter_context(locked(folder))
                    resumed = Path(resume_from_checkpoint) if resume_from_checkpoint else None
                    self.run_mark = begin_run(self.args, settings, resumed)
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def newest_checkpoint(self) -> Path:
        """This run's newest checkpoint that was written whole; asked for by all processes.

        Raises:
            CheckpointError: there is none, or only of runs with other settings.
        """
        folder, settings = Path(str(self.args.output_dir)), self._run_settings()
        return processes_of(self.args).decided(lambda: _newest(folder, settings))

    def _run_settings(self) -> dict[str, Any]:
        return run_settings(self.args, cast(nn.Module, self.model), self.train_dataset, self.light_settings())

    def light_settings(self) -> dict[str, Any] | None:
        """The light configuration, of a light run."""
        return None

    def finish_checkpoint(self, checkpoint: Path) -> None:
        """Mark what the Trainer wrote as complete; called by all processes."""
        if self.args.should_save:
            mark_complete(checkpoint, self.run_mark)

    evaluates_in_order: bool = False
    """Whether evaluations take the rows as they are, also where training groups them by length."""

    written: Callable[[nn.Module, Mapping[str, Tensor], Any], Tensor] | None = None
    """(model, inputs, labels) -> what is scored in the place of the logits: what the model writes."""

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        if self.written is None or prediction_loss_only:
            step: tuple[Tensor | None, Any, Any] = super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys
            )
            return step
        inputs = self._prepare_inputs(inputs)
        loss, _, _ = super().prediction_step(model, inputs, prediction_loss_only=True)
        labels = inputs.get("labels")
        with torch.no_grad():
            return loss, self.written(model, inputs, labels), labels

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[Any] | None:
        if self.evaluates_in_order:
            return SequentialSampler(cast(Sized, eval_dataset))
        sampler: Sampler[Any] | None = super()._get_eval_sampler(eval_dataset)
        return sampler

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[Any] | None:
        """An order by length that a resumed run goes on in, as it does in the Trainer's other orders."""
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ResumableLengthSampler(sampler, seed, self.args.world_size)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """A run that is resumed at its end takes no further step; a Trainer by itself takes one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            say_epoch(kwargs.get("train_dataloader"), kwargs.get("epoch", 0))
            trainer: Any = super()
            trainer._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Delete old checkpoints only once the new one is complete."""
        run, limit = Path(str(self._get_output_dir(trial=trial))), self.args.save_total_limit
        processes = processes_of(self.args)
        checkpoint = run / f"checkpoint-{self.state.global_step}"
        self.args.save_total_limit = None
        try:
            with processes.agreed():
                if self.args.should_save:
                    unmark(checkpoint)
            with processes.agreed():  # each writes its own random state
                super()._save_checkpoint(model, trial)
            with processes.agreed():
                self.finish_checkpoint(checkpoint)
        except (OSError, SafetensorError, OutputError) as error:
            raise _not_written(checkpoint, error) from error
        except RuntimeError as error:
            if "inline_container" not in str(error):  # torch.save's, where its file cannot be written
                raise
            raise _not_written(checkpoint, error) from error
        finally:
            self.args.save_total_limit = limit
        if limit is not None and limit > 0 and self.args.should_save:
            own = None if self.run_mark is None else self.run_mark.id
            keep_newest(run, limit, self.state.best_model_checkpoint, own)


def processes_of(args: TrainingArguments) -> Processes:
    """Those that train by these arguments."""
    together = args.parallel_mode == ParallelMode.DISTRIBUTED
    return Processes.of_group() if together else Processes()


def warn_if_apart(args: TrainingArguments) -> None:
    """Several processes were started, and each is about to train a model of its own."""
    started = os.environ.get("WORLD_SIZE", "1")
    if started != "1" and args.world_size == 1:
        warnings.warn(
            f"{started} processes were started (WORLD_SIZE), but this one trains for itself, because "
            "accelerate made no group of them. On a CPU, set TrainingArguments(use_cpu=True).",
            stacklevel=3,
        )


def begin_run(args: TrainingArguments, settings: dict[str, Any], resumed: Path | None) -> RunMark:
    """The mark of a run that begins, or that goes on from `resumed`.

    Raises:
        CheckpointError: `resumed` is not complete.
        OutputError: checkpoints of another run would be written over.
    """
    folder, mark = str(args.output_dir), None
    if resumed is not None:
        require_complete(resumed)
        mark = run_of(resumed)
    if mark is None or mark.settings != settings:
        mark = RunMark(uuid.uuid4().hex, settings)
    if args.save_strategy != SaveStrategy.NO:
        if resumed is None:
            require_unused(folder, "Resume it (resume_from_checkpoint=True)")
        else:
            step = int(resumed.name.rpartition("-")[2]) if resumed.name.startswith("checkpoint-") else 0
            require_unused(folder, "Resume from the newest one", after=step, run_id=mark.id)
    return mark


def _newest(folder: Path, settings: dict[str, Any]) -> Path:
    found = last_complete_checkpoint(folder, settings)
    if found is not None:
        return found
    other = last_complete_checkpoint(folder)
    mark = None if other is None else run_of(other)
    if mark is None:
        raise CheckpointError(
            f"{folder} has no complete checkpoint to resume from; start without resume_from_checkpoint."
        )
    odd = differences(mark.settings, settings) or "another number of processes"
    raise CheckpointError(
        f"the checkpoints in {folder} are of another run, with {odd}. "
        "Resume with the same settings, or start in another folder; in Python, "
        f"resume_from_checkpoint={str(other)!r} goes on from it all the same."
    )


def _not_written(checkpoint: Path, error: Exception) -> OutputError:
    discard_unfinished(checkpoint)
    last = last_complete_checkpoint(checkpoint.parent)
    return OutputError(
        f"{checkpoint} could not be written ({_reason(error)}), and training stopped. The newest "
        f"whole checkpoint: {last or 'none'}."
    )


def _reason(error: BaseException) -> str:
    """What the system said, where something else was raised over it."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    if inner is None:
        return str(error).splitlines()[0] if isinstance(error, OutputError) else "is the disk full?"
    return str(inner)
