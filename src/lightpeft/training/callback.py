"""`LightCallback`: Light-PEFT in anybody's `transformers.Trainer`."""

import logging
import math
import warnings
from collections.abc import Callable, Sized
from contextlib import ExitStack
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, is_initialized
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy

from lightpeft.checkpoint import (
    RunMark,
    copy_cut,
    is_complete,
    mark_complete,
    require_complete,
    run_of,
    unmark,
)
from lightpeft.config import LightConfig, Preset
from lightpeft.errors import ConfigError
from lightpeft.outputs import locked
from lightpeft.plan import Plan
from lightpeft.processes import TWO_PHASES, Processes, require_whole
from lightpeft.scores import Scores
from lightpeft.surgery import CutReport, record_of, require_followable
from lightpeft.training.keeping import begin_run, processes_of, warn_if_apart
from lightpeft.training.live_run import trainer_at_work, trainer_that_pushes
from lightpeft.training.prefix import Ahead
from lightpeft.training.run_settings import run_settings
from lightpeft.training.schedule import (
    require_restartable,
    require_scalable,
    restart_schedule,
    scale_rates,
    stretch_schedule,
)
from lightpeft.training.session import LightSession, is_of_light_run
from lightpeft.training.targeting import Pace
from lightpeft.training.wrapper import ddp_around, renew
from lightpeft.wrapping import peft_model_in, require_peft_model

logger = logging.getLogger(__name__)


class LightCallback(TrainerCallback):
    """Estimates, cuts and goes on, inside the run of any `transformers.Trainer` (TRL's included).

    Estimation steps are ordinary training steps and count as such.

    Args:
        stop_after_cut: end the training once the model is cut and a checkpoint of that is written, from which
            another run goes on; for engines that a cut inside a run does not survive.
    """

    def __init__(self, config: LightConfig | Preset = "default", *, stop_after_cut: bool = False) -> None:
        chosen = config if isinstance(config, LightConfig) else LightConfig.preset(config)
        self.session = LightSession(chosen)
        self.stop_after_cut = stop_after_cut
        self._restored_from: Path | None = None
        self._trains = False
        self._run: RunMark | None = None
        self._lock = ExitStack()
        self._processes = Processes()
        self._wrapper: DistributedDataParallel | None = None
        self.is_kept = False
        """Whether the Trainer takes care of its checkpoints itself."""

    @property
    def plan(self) -> Plan | None:
        """The plan, once made."""
        return self.session.plan

    @property
    def scores(self) -> Scores | None:
        """The scores, once estimated."""
        return self.session.scores

    @property
    def report(self) -> CutReport | None:
        """What the cut changed, once done in this process."""
        return self.session.report

    @property
    def measured(self) -> float | None:
        """What came of the target, as share of plain PEFT's cost, once measured in this process."""
        return self.session.measured

    def restore(self, model: nn.Module, checkpoint: str | Path) -> None:
        """Prepare a fresh model and this callback to resume from `checkpoint`.

        `LightTrainer` calls this itself; with another Trainer call it before `Trainer(...)` is made,
        then `trainer.train(resume_from_checkpoint=checkpoint)`.

        Raises:
            CheckpointError: the checkpoint is incomplete, or of another base or configuration.
        """
        folder = Path(checkpoint)
        require_complete(folder)
        self.session.end()
        self.session = LightSession(self.session.config)
        self.session.restore(model, folder)
        self._restored_from = folder

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A Trainer that resumes loads the adapter before any other event: then the model has to be cut."""
        model = kwargs.get("model")
        if isinstance(model, PeftModel):
            vars(model)["load_adapter"] = MethodType(_restoring(self), model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, scheduler = self._cuttable(kwargs["model"], args, state), kwargs["lr_scheduler"]
        vars(model).pop("load_adapter", None)
        resumed = self._restored_from or (_checkpoint(args, state) if state.global_step else None)
        require_supported(args)
        require_whole(model, "it cannot be cut inside the run")
        if self.stop_after_cut:
            _require_resumable(args, self.session.config)
        self._processes = processes_of(args)
        self._wrapper = None if self._processes.is_alone else _wrapper_around(kwargs["model"])
        if not self.is_kept:
            warn_if_apart(args)
            self._lock.close()
            with self._processes.agreed():
                if args.should_save:
                    self._lock.enter_context(locked(Path(str(args.output_dir))))
                    self._run = self._begin_run(args, model, kwargs.get("train_dataloader"), resumed)
        if self._restored_from is None and state.global_step > 0:
            self.restore(model, _checkpoint(args, state))
        elif self._restored_from is None and not self.session.can_begin_with(model):
            self.session.end()  # of a run that was broken off, say
            self.session = LightSession(self.session.config)
        self._restored_from, self._trains = None, True
        config = self.session.config
        if config.restart_schedule:
            require_restartable(scheduler)
            if self.session.cut_step is not None:
                stretch_schedule(scheduler, args, state.max_steps - self.session.cut_step)
        if self.session.plan is None:
            require_followable(kwargs["optimizer"], model)
            if config.learning_rate_factor != 1:
                require_scalable(scheduler, config.learning_rate_factor, state.max_steps - state.global_step)
        batches = kwargs.get("train_dataloader")
        pace = _pace(args, batches)
        shows = not args.disable_tqdm and state.is_world_process_zero
        self.session.begin(model, state.max_steps, shows, pace, state.global_step, self._processes)
        self.session.freeze(model, _ahead(args, state, batches))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.session.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = kwargs["optimizer"]
        self.session.end_backward(optimizer.param_groups[0]["lr"], loss_scale_of(optimizer))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = kwargs["optimizer"]
        self._announce(args, state, control)
        model = peft_model_in(kwargs["model"])
        if not self.session.end_step(model, optimizer, state.global_step):
            return
        if self._wrapper is not None:
            renew(self._wrapper)
        self.session.freeze(model, _ahead(args, state, kwargs.get("train_dataloader")))
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        if self.session.config.learning_rate_factor != 1:
            scale_rates(kwargs["lr_scheduler"], self.session.config.learning_rate_factor)
        if self.session.config.restart_schedule:
            getattr(optimizer, "optimizer", optimizer).state.clear()
            restart_schedule(kwargs["lr_scheduler"], args, state.max_steps - state.global_step)
        if self.stop_after_cut:
            control.should_save = control.should_training_stop = True
            self._announce(args, state, control)
            logger.info(
                "the first phase is over after %d of %d steps: %s is the cut model with its optimizer, its "
                "schedule and the place in the data; a second run goes on from it (docs/distributed.md)",
                *(state.global_step, state.max_steps, _checkpoint(args, state)),
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._announce(args, state, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if isinstance(kwargs["model"], PeftModel):
            self._processes.wait()  # each writes its own random state into the checkpoint
            self.finish_checkpoint(
                kwargs["model"], _checkpoint(args, state), self._run, writes=args.should_save
            )

    def prove(self, model: nn.Module, folder: Path) -> None:
        """Load a light checkpoint that was just written, and compare outputs on the verification batch.

        Once while training goes on after the cut, and each time after training.

        Raises:
            CheckpointError: it cannot be loaded, or computes something else.
        """
        self.session.prove(model, folder, again=not self._trains)

    def finish_checkpoint(
        self, model: nn.Module, checkpoint: Path, run: RunMark | None, *, writes: bool = True
    ) -> None:
        """Add what resuming needs to a checkpoint that the Trainer wrote, and mark it complete.

        Args:
            writes: of several processes, all of which call this, whether this one is to write it.
        """
        if not self._processes.decided(lambda: _is_written(checkpoint)):
            return
        with self._processes.agreed():
            self.session.save(model, checkpoint, writes=writes)
            if writes:
                mark_complete(checkpoint, run)

    def _announce(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """A checkpoint is about to be written."""
        if control.should_save and not state.is_hyper_param_search:
            if args.should_save:
                unmark(_checkpoint(args, state))
            self._processes.wait()

    def _cuttable(self, model: nn.Module, args: TrainingArguments, state: TrainerState) -> PeftModel:
        """The PeftModel of this run, which may be inside the Trainer's model.

        Raises:
            ConfigError: there is none, or it is inside another model in a run that loads checkpoints.
        """
        if self.is_kept:
            return require_peft_model(model)
        inner = peft_model_in(model)
        loads = {
            "load_best_model_at_end": args.load_best_model_at_end,
            "resume_from_checkpoint": bool(state.global_step) or self._restored_from is not None,
        }
        if inner is not model and any(loads.values()):
            raise ConfigError(
                f"{' and '.join(name for name, asked in loads.items() if asked)}: the PeftModel that is cut "
                f"is inside a {type(model).__name__}, whose checkpoints know nothing of a cut and cannot be "
                "loaded in a run. Leave that out; lightpeft.save(the PeftModel, folder) keeps the result."
            )
        return inner

    def _begin_run(
        self, args: TrainingArguments, model: PeftModel, batches: Any, resumed: Path | None
    ) -> RunMark:
        """The mark of this run's checkpoints under an ordinary Trainer."""
        known = None if resumed is None else run_of(resumed)
        if known is not None:
            return begin_run(args, dict(known.settings), resumed)
        data = getattr(batches, "dataset", None)
        return begin_run(args, run_settings(args, model, data, self.session.config.to_dict()), resumed)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep a Trainer that pushes a cut model from sending its own card, or a part of a checkpoint."""
        model = kwargs["model"]
        if not isinstance(model, PeftModel) or record_of(model) is None:
            return
        if (trainer := trainer_that_pushes()) is None:
            copy_cut(_checkpoint(args, state), Path(str(args.output_dir)))
        else:
            vars(trainer)["create_model_card"] = lambda **_: vars(trainer).pop("create_model_card")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.session.finish()
        self._lock.close()
        self._trains = False
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.session.restore_own(peft_model_in(kwargs["model"]), Path(state.best_model_checkpoint))
        if self.session.plan is None:
            warnings.warn(
                f"NOTHING WAS CUT: training ended after {state.global_step} steps, before estimation was "
                "done. The model is a plain PEFT model, save it with save_pretrained; to have it cut, train "
                "longer or give fewer estimation.steps.",
                stacklevel=2,
            )


def _restoring(callback: LightCallback) -> Callable[..., Any]:
    """PEFT's `load_adapter`, which first brings the model to where a light run's checkpoint was."""

    def load_adapter(self: PeftModel, model_id: str, *args: Any, **kwargs: Any) -> Any:
        if is_of_light_run(Path(model_id)) and callback._restored_from is None:
            callback.restore(self, model_id)
        return type(self).load_adapter(self, model_id, *args, **kwargs)

    return load_adapter


def loss_scale_of(optimizer: torch.optim.Optimizer) -> Tensor | float:
    """What the loss was multiplied by (float16 under accelerate), on the device, without reading it."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return 1.0
    scale = scaler._scale
    return scale if isinstance(scale, Tensor) else float(scaler.get_scale())


def _is_written(checkpoint: Path) -> bool:
    """Whether a Trainer wrote all of its own, and nothing more came to it."""
    return (checkpoint / TRAINER_STATE_NAME).is_file() and not is_complete(checkpoint)


def _wrapper_around(model: nn.Module) -> DistributedDataParallel:
    trainer = trainer_at_work()
    return ddp_around(None if trainer is None else trainer.model_wrapped, model)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _pace(args: TrainingArguments, batches: Any) -> Pace:
    """How a run goes over these batches."""
    each_step = args.gradient_accumulation_steps
    try:
        each_pass = max(1, math.ceil(len(batches) / each_step))
    except TypeError:  # nobody knows their number
        each_pass = None
    return Pace(Path(str(args.output_dir)), each_pass, each_step)


def _ahead(args: TrainingArguments, state: TrainerState, batches: Any) -> Ahead:
    """What is left of a run over these batches."""
    pace = _pace(args, batches)
    rows = getattr(batches, "dataset", None)
    if pace.each_pass is None or not isinstance(rows, Sized):
        return Ahead(None, None, pace.folder)
    return Ahead((state.max_steps - state.global_step) / pace.each_pass, len(rows), pace.folder)


def require_supported(args: TrainingArguments) -> None:
    """Refuse, before anything is trained, what a cut inside the run does not survive.

    Raises:
        ConfigError: naming it.
    """
    engine = AcceleratorState().distributed_type if is_initialized() else None
    problems = {
        "several GPUs in one process (show it one, CUDA_VISIBLE_DEVICES=0, or start a process for each: "
        "torchrun --nproc_per_node)": args.n_gpu > 1,
        "DeepSpeed": bool(args.deepspeed) or engine == DistributedType.DEEPSPEED,
        "FSDP": bool(args.fsdp) or engine == DistributedType.FSDP,
        "a model in parts on several devices (leave parallelism_config out)": (
            getattr(args, "parallelism_config", None) is not None
        ),
    }
    found = [name for name, present in problems.items() if present]
    if found:
        raise ConfigError(
            "the cut changes the shapes of parameters inside the run, which the following does not survive: "
            f"{', '.join(found)}. Leave it out (several processes that each have the whole model, as in DDP, "
            f"are no problem). Or: {TWO_PHASES}"
        )


def _require_resumable(args: TrainingArguments, config: LightConfig) -> None:
    """Refuse a first phase that a second one could not go on from.

    Raises:
        ConfigError: it would leave no whole checkpoint, or a schedule that is not in it.
    """
    problems = {
        "save_strategy='no'": args.save_strategy == SaveStrategy.NO,
        "save_only_model=True": bool(args.save_only_model),
        "restart_schedule=True": config.restart_schedule,
    }
    found = [name for name, present in problems.items() if present]
    if found:
        raise ConfigError(
            "stop_after_cut ends in a checkpoint from which another run goes on in the same schedule. That "
            f"cannot be with {' and '.join(found)}."
        )
