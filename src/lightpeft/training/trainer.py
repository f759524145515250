"""`LightTrainer`: a `transformers.Trainer` that runs light PEFT and resumes by itself."""

from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from lightpeft.checkpoint import keep_adapter, keep_newest, last_complete_checkpoint, unmark, write_cut
from lightpeft.config import LightConfig, Preset
from lightpeft.errors import CheckpointError
from lightpeft.surgery import record_of
from lightpeft.training.callback import LightCallback


class LightTrainer(Trainer):
    """A `transformers.Trainer` whose run estimates, cuts and goes on.

    Args:
        light: a configuration or the name of a preset; everything else is the Trainer's.
    """

    def __init__(self, *args: Any, light: LightConfig | Preset = "default", **kwargs: Any) -> None:
        self.light = LightCallback(light)
        super().__init__(*args, **kwargs)
        self.add_callback(self.light)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train. `resume_from_checkpoint=True` takes the newest checkpoint that was written whole.

        Raises:
            CheckpointError: there is none.
        """
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(str(self.args.output_dir))
            if found is None:
                raise CheckpointError(
                    f"{self.args.output_dir} has no complete checkpoint to resume from; start without "
                    "resume_from_checkpoint."
                )
            resume_from_checkpoint = str(found)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.light.session.end()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        model: Any = self.model
        record, folder = record_of(model), Path(str(output_dir or self.args.output_dir))
        if record is not None and self.args.should_save:
            keep_adapter(model, folder, record.adapter)
            write_cut(model, folder, record)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Delete old checkpoints only once the new one is complete."""
        run, limit = Path(str(self.args.output_dir)), self.args.save_total_limit
        checkpoint = run / f"checkpoint-{self.state.global_step}"
        unmark(checkpoint)
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.light.finish_checkpoint(cast(nn.Module, self.model), checkpoint)
        if limit is not None and limit > 0 and self.args.should_save:
            keep_newest(run, limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target: Any = self.model if model is None else model
        self.light.restore(target, Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)
