"""`save`: write a light checkpoint, all or nothing."""

import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lightpeft.adapters import active_form
from lightpeft.anatomy import base_of
from lightpeft.checkpoint.base import describe_base
from lightpeft.checkpoint.card import model_card
from lightpeft.checkpoint.format import write_record
from lightpeft.checkpoint.poison import refuse_marked_model
from lightpeft.errors import CheckpointError
from lightpeft.outputs import Output, written_folder
from lightpeft.surgery import CutRecord, record_of
from lightpeft.wrapping import base_parameters, is_copied

_RESTORABLE = "lightpeft_restorable"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    metrics: Mapping[str, float] | None = None,
    task: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model`, which was cut, as a light checkpoint: stock PEFT files, the plan, small tensors.

    An older light checkpoint in `folder` that nobody changed is replaced, once the new one is whole.

    Args:
        metrics: fractions or plain numbers for the record and the card.
        task: JSON values that describe the task, kept for `evaluate` and `predict`.

    Raises:
        CheckpointError: the model was not cut or the audit poisoned it.
        OutputError: `folder` holds something else, which is left as it is, or cannot be written.
    """
    target = Path(folder)
    record = _record_to_save(model)
    refuse_marked_model(model)
    with written_folder(target, Output.LIGHT) as beside:
        beside.mkdir(parents=True)
        write_adapter(model, beside, record.adapter)
        write_cut(model, beside, record, metrics=metrics, task=task)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
    return target


def write_adapter(model: nn.Module, folder: Path, adapter: str = "default") -> None:
    """Write PEFT's own files of one adapter, whatever its name, into `folder` itself."""
    if not isinstance(model, PeftModel):
        raise CheckpointError(f"expected a PeftModel to save, found {type(model).__name__}.")
    model.save_pretrained(str(folder), selected_adapters=[adapter], save_embedding_layers=False)
    if adapter != "default":
        inner = folder / adapter
        for file in inner.iterdir():
            file.rename(folder / file.name)
        inner.rmdir()


def keep_adapter(model: PeftModel, folder: Path, adapter: str) -> None:
    """Of what PEFT wrote of all adapters into `folder`, keep one, and that in `folder` itself."""
    if adapter != "default":
        write_adapter(model, folder, adapter)
    for name in model.peft_config:
        if (folder / name / "adapter_config.json").is_file():
            shutil.rmtree(folder / name)


def write_cut(
    model: nn.Module,
    folder: Path,
    record: CutRecord,
    *,
    metrics: Mapping[str, float] | None = None,
    task: Mapping[str, Any] | None = None,
) -> None:
    """Write plan, small tensors and card beside PEFT's files that are already in `folder`."""
    refuse_marked_model(model)
    described = describe_base(model)
    numbers = {name: float(value) for name, value in (metrics or {}).items()}
    extra = {
        "lightpeft_version": version("lightpeft"),
        "base": described,
        "metrics": numbers,
        "task": dict(task) if task is not None else None,
    }
    write_record(folder, record, extra, unsaved_parameters(model))
    form = active_form(model)
    card = model_card(
        described["name_or_path"] or "the base model",
        record.plan,
        numbers,
        version("lightpeft"),
        "no PEFT" if form is None else form.title,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def unsaved_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What neither the base nor PEFT's file restores.

    Those are poolers and heads outside `modules_to_save`, which may have been initialised at random when the
    base was loaded (unless `mark_restorable` said where they came from and nothing trains them), and biases
    that were trained on linears whose PEFT module is gone.
    """
    base = base_of(model)
    restorable: frozenset[str] = getattr(base, _RESTORABLE, frozenset())
    encoder = "" if base.base_model is base else f"{base.base_model_prefix}."
    stale = _trained_biases(model)
    return {
        name: parameter.detach()
        for name, parameter in base_parameters(base).items()
        if name in stale
        or (
            (not name.startswith(encoder) or name.startswith(f"{encoder}pooler."))
            and (parameter.requires_grad or name not in restorable)
            and not is_copied(base, name)
        )
    }


def _trained_biases(model: nn.Module) -> set[str]:
    """Of PEFT's `bias="lora_only"`: the biases of linears that lost their module."""
    record = record_of(model)
    if record is None or not isinstance(model, PeftModel):
        return set()
    config = model.peft_config.get(record.adapter)
    if not str(getattr(config, "bias", "none")).endswith("_only"):
        return set()
    return {f"{module.name}.bias" for module in record.plan.removed_modules}


def mark_restorable(base: nn.Module, names: Iterable[str]) -> None:
    """Note which parameters of a freshly loaded base its own checkpoint restores."""
    setattr(base, _RESTORABLE, frozenset(names))


def _record_to_save(model: nn.Module) -> CutRecord:
    record = record_of(model)
    if record is None:
        raise CheckpointError(
            "the model was not cut, so there is no light checkpoint to save; use PEFT's save_pretrained."
        )
    return record
