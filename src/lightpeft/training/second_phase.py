"""The second phase of a run: a cut model trained under DeepSpeed, from where the first one ended."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from lightpeft.errors import ConfigError
from lightpeft.training.keeping import KeepingTrainer


class SecondPhaseTrainer(KeepingTrainer):
    """A Trainer that resumes from the checkpoint with which `stop_after_cut` ended a first phase.

    Its model is that checkpoint, loaded. Steps, schedule, random state and the place in the data are the
    checkpoint's. The optimizer's moments start anew: DeepSpeed keeps its own in another form.
    """

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Without the Trainer's search for a checkpoint of the engine's own form."""
        trainer: Any = super()
        prepared = trainer._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            _go_on(cast("LRScheduler", self.lr_scheduler), Path(resume_from_checkpoint) / SCHEDULER_NAME)
        return prepared


def require_second_phase() -> None:
    """Refuse a transformers in which a Trainer prepares its model elsewhere.

    Raises:
        ConfigError: this is one.
    """
    if not hasattr(Trainer, "_prepare_for_training"):
        raise ConfigError(
            "a second phase under DeepSpeed needs a transformers whose Trainer has "
            "_prepare_for_training, as 5.23 has; this one has not."
        )


def trained_values(model: nn.Module) -> dict[str, Tensor]:
    """Every trainable parameter, whole and on the CPU, in full precision; asked for by all processes."""
    return {name: _value(value) for name, value in model.named_parameters() if value.requires_grad}


def take_values(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Put what `trained_values` gave of a model into another that is whole."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def _value(parameter: Tensor) -> Tensor:
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        found = safe_get_full_fp32_param(parameter)
        if found is not None:
            return cast("Tensor", found).detach().reshape(_shape(parameter)).to("cpu", copy=True)
    return parameter.detach().to("cpu", copy=True)


def _shape(parameter: Tensor) -> torch.Size:
    """Also of a parameter that ZeRO 3 leaves empty."""
    return cast("torch.Size", getattr(parameter, "ds_shape", parameter.shape))


def _go_on(scheduler: LRScheduler, file: Path) -> None:
    """Bring a schedule, and the rates it gives, to where it was when `file` was written."""
    scheduler.load_state_dict(torch.load(file, weights_only=True))
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
