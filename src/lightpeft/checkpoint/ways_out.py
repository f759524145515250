"""The ordinary ways of saving a cut model: they write a whole light checkpoint, or say what to call instead.

A stock `save_pretrained` would write an adapter without its plan, which stock PEFT loads into the uncut base
where the shapes allow it, or a small base under the configuration of the whole one.
"""

import shutil
from pathlib import Path
from types import MethodType
from typing import Any

from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from lightpeft.anatomy import base_of
from lightpeft.checkpoint.card import keeping_card
from lightpeft.checkpoint.format import CARD, CUT_FILES, LIGHT
from lightpeft.checkpoint.push import push_model
from lightpeft.checkpoint.save import keep_adapter, save, write_cut
from lightpeft.errors import CheckpointError
from lightpeft.outputs import written_beside
from lightpeft.surgery import WHEN_CUT, record_of


def guard(model: nn.Module) -> None:
    """Make `save_pretrained` of a cut model, and so Trainers, and `push_to_hub` write the cut as well.

    A method of the instance takes the place of the class's; copies of the model keep it.
    """
    base: Any = base_of(model)
    base.save_pretrained = MethodType(_refuse_to_save, base)
    vars(base).setdefault("push_to_hub", MethodType(_refuse_to_save, base))  # the audit's own refusal stays
    if isinstance(model, PeftModel):
        whole: Any = model
        whole.save_pretrained = MethodType(_save_light, whole)
        whole.push_to_hub = MethodType(push_model, whole)


WHEN_CUT.append(guard)


def _save_light(
    self: PeftModel,
    save_directory: str,
    safe_serialization: bool = True,
    selected_adapters: list[str] | None = None,
    save_embedding_layers: str | bool = "auto",
    is_main_process: bool = True,
    **kwargs: Any,
) -> None:
    """PEFT's `save_pretrained` for a cut model: a whole light checkpoint, of the adapter that was cut."""
    record = record_of(self)
    assert record is not None
    del save_embedding_layers  # what of them differs from the base's is stored anyway
    if not safe_serialization or kwargs.get("push_to_hub"):
        raise CheckpointError(
            "a cut model is saved as safetensors only, and pushed by push_to_hub(REPO): leave "
            "safe_serialization=False and push_to_hub=True out, or call lightpeft.save(model, folder)."
        )
    folder = Path(save_directory)
    with keeping_card(folder / CARD):
        type(self).save_pretrained(
            self,
            save_directory,
            selected_adapters=selected_adapters,
            save_embedding_layers=False,
            is_main_process=is_main_process,
            **kwargs,
        )
        if is_main_process:
            keep_adapter(self, folder, record.adapter)
            write_cut(self, folder, record)


def copy_cut(checkpoint: Path, folder: Path) -> None:
    """Put what a cut adds to PEFT's files of a Trainer's checkpoint into a folder to which PEFT's go, too."""
    with keeping_card(folder / CARD):
        for name in CUT_FILES:
            with written_beside(folder / name) as beside:
                shutil.copyfile(checkpoint / name, beside)


def save_with_state(accelerator: Accelerator) -> None:
    """Make `accelerator.save_state(folder)` write the light checkpoint of a cut model, too: `folder/light`.

    accelerate alone writes tensors and nothing about the cut. To go on later, call
    `load(folder / "light", is_trainable=True)`, make the optimizer, prepare both, and `load_state(folder)`.
    """
    accelerator.register_save_state_pre_hook(_save_beside_state)


def _save_beside_state(models: list[nn.Module], _weights: list[dict[str, Any]], folder: str) -> None:
    for number, prepared in enumerate(models):
        model = extract_model_from_parallel(prepared)
        if isinstance(model, PeftModel) and record_of(model) is not None:
            save(model, Path(folder) / (LIGHT if number == 0 else f"{LIGHT}_{number}"))


def _refuse_to_save(self: PreTrainedModel, *_args: Any, **_kwargs: Any) -> None:
    raise CheckpointError(
        f"this {type(self).__name__} was cut: nothing could load it under its configuration, which is the "
        "whole model's. Save the PEFT model around it with lightpeft.save(model, folder) before it is merged "
        "or unloaded; lightpeft.export_merged(folder, out) then writes the small model alone."
    )
