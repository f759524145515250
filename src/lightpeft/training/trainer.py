"""`LightTrainer`: a `transformers.Trainer` that runs light PEFT and resumes by itself."""

from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers.trainer_utils import TrainOutput

from lightpeft.checkpoint import bind_files
from lightpeft.config import LightConfig, Preset
from lightpeft.surgery import record_of
from lightpeft.training.callback import LightCallback, require_supported
from lightpeft.training.keeping import KeepingTrainer


class LightTrainer(KeepingTrainer):
    """A `transformers.Trainer` whose run estimates, cuts and goes on.

    Args:
        light: a configuration or the name of a preset; everything else is the Trainer's.
        stop_after_cut: see `LightCallback`.
    """

    def __init__(
        self,
        *args: Any,
        light: LightConfig | Preset = "default",
        stop_after_cut: bool = False,
        **kwargs: Any,
    ) -> None:
        self.light = LightCallback(light, stop_after_cut=stop_after_cut)
        self.light.is_kept = True
        super().__init__(*args, **kwargs)
        self.add_callback(self.light)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """See `KeepingTrainer.train`: `resume_from_checkpoint=True` takes the newest whole checkpoint."""
        require_supported(self.args)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.light.session.end()

    def light_settings(self) -> dict[str, Any]:
        """The light configuration."""
        return self.light.session.config.to_dict()

    def finish_checkpoint(self, checkpoint: Path) -> None:
        """Add what resuming needs, and mark the checkpoint as complete."""
        model = cast(nn.Module, self.model)
        self.light.finish_checkpoint(model, checkpoint, self.run_mark, writes=self.args.should_save)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As every Trainer's, which a cut model answers with a light checkpoint; proved where it counts."""
        super()._save(output_dir, state_dict)
        folder = Path(str(output_dir or self.args.output_dir))
        if record_of(cast(nn.Module, self.model)) is not None and self.args.should_save:
            bind_files(folder)
            self.light.prove(cast(nn.Module, self.model), folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target: Any = self.model if model is None else model
        self.light.restore(target, Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)
