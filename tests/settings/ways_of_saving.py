"""Rows: the ways in which a cut model reaches a folder."""

from pathlib import Path
from typing import Any

from torch import nn

import lightpeft
from lightpeft import LightTrainer
from tests.settings.flags import BEST, SAVES
from tests.settings.kinds import LLAMA, T5, VIT
from tests.settings.row import STEPS, Row, Setting


def _save_model(setting: Setting, model: nn.Module) -> Path:
    folder = setting.folder / "saved"
    setting.trainer.save_model(str(folder))
    return folder


def _save_pretrained(setting: Setting, model: Any) -> Path:
    model.save_pretrained(setting.folder / "saved")
    return setting.folder / "saved"


def _save_pretrained_over_another(setting: Setting, model: Any) -> Path:
    _save_pretrained(setting, model)
    return _save_pretrained(setting, model)


def _save_pretrained_loaded(setting: Setting, model: Any) -> Path:
    """What was loaded is saved again, in the ordinary way."""
    loaded = lightpeft.load(lightpeft.save(model, setting.folder / "light"))
    return _save_pretrained(setting, loaded)


def _save_into_the_run(setting: Setting, model: nn.Module) -> Path:
    """Beside the checkpoints of the run, as `trainer.save_model()` does."""
    setting.trainer.save_model()
    run = setting.folder / "run"
    assert len(list(run.glob("checkpoint-*"))) > 1
    return run


def _last_checkpoint(setting: Setting, model: nn.Module) -> Path:
    return setting.folder / "run" / f"checkpoint-{STEPS}"


def _with_light_trainer(setting: Setting) -> nn.Module:
    return setting.train(kind=LightTrainer).model


WAYS = [
    Row("trainer.save_model", save=_save_model),
    Row("trainer.save_model of LightTrainer", run=_with_light_trainer, save=_save_model),
    Row("trainer.save_model into the run", arguments=SAVES, save=_save_into_the_run),
    Row("save_pretrained", save=_save_pretrained),
    Row("save_pretrained, LLaMA", LLAMA, save=_save_pretrained),
    Row("save_pretrained, T5", T5, save=_save_pretrained),
    Row("save_pretrained, images", VIT, lora={"modules_to_save": ["classifier"]}, save=_save_pretrained),
    Row("save_pretrained twice", save=_save_pretrained_over_another),
    Row("save_pretrained of a loaded model", save=_save_pretrained_loaded),
    Row("the last checkpoint", arguments=SAVES, save=_last_checkpoint),
    Row("the last checkpoint, DoRA", arguments=SAVES, lora={"use_dora": True}, save=_last_checkpoint),
    Row(
        "the last checkpoint of LightTrainer", arguments=SAVES, run=_with_light_trainer, save=_last_checkpoint
    ),
    Row(
        "the last checkpoint without its optimizer",
        arguments=SAVES | {"save_only_model": True},
        save=_last_checkpoint,
    ),
    Row("the model after the best was loaded", arguments=SAVES | BEST, save=_save_model),
]
