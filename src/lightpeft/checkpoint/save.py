"""`save`: write a light checkpoint, all or nothing."""

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from lightpeft.adapters import active_form
from lightpeft.checkpoint.card import Card
from lightpeft.checkpoint.format import CARD, NOTE, has_tokenizer, write_record
from lightpeft.checkpoint.hub_names import hub_name
from lightpeft.checkpoint.origin import describe_with_origin
from lightpeft.checkpoint.own import dtypes_of, own_tensors
from lightpeft.checkpoint.poison import refuse_marked_model
from lightpeft.checkpoint.proof import read_back
from lightpeft.errors import CheckpointError
from lightpeft.files import read_json, write_json
from lightpeft.outputs import Output, written_folder
from lightpeft.processes import require_whole
from lightpeft.surgery import CutRecord, record_of


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
        ConfigError: it is in parts on several processes.
        OutputError: `folder` holds something else, which is left as it is, or cannot be written.
    """
    target = Path(folder)
    record = _record_to_save(model)
    require_whole(model, "it cannot be saved as it is")
    refuse_marked_model(model)
    with written_folder(target, Output.LIGHT) as beside:
        beside.mkdir(parents=True)
        write_adapter(model, beside, record.adapter)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        write_cut(model, beside, record, metrics=metrics, task=task)
        read_back(beside, model)
    return target


def write_adapter(model: nn.Module, folder: Path, adapter: str = "default") -> None:
    """Write PEFT's own files of one adapter, whatever its name, into `folder` itself."""
    if not isinstance(model, PeftModel):
        raise CheckpointError(f"expected a PeftModel to save, found {type(model).__name__}.")
    # The class's own: a cut model's `save_pretrained` writes more, see ways_out.
    type(model).save_pretrained(model, str(folder), selected_adapters=[adapter], save_embedding_layers=False)
    if adapter != "default":
        inner = folder / adapter
        for file in inner.iterdir():
            file.replace(folder / file.name)
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
    described = describe_with_origin(model)
    numbers = {name: float(value) for name, value in (metrics or {}).items()}
    extra = {
        "lightpeft_version": version("lightpeft"),
        "base": described,
        "dtypes": dtypes_of(model, record.adapter),
        "metrics": numbers,
        "task": dict(task) if task is not None else None,
    }
    form = active_form(model)
    card = Card(
        extra,
        record.plan,
        "no PEFT" if form is None else form.title,
        hub_name(described["name_or_path"])[0],
        has_tokenizer=has_tokenizer(folder),
    )
    (folder / CARD).write_text(str(card), encoding="utf-8")
    _tell_stock_readers(folder)
    write_record(folder, record, extra, own_tensors(model))


def _tell_stock_readers(folder: Path) -> None:
    """A key that PEFT does not know, which makes it warn, naming the key, whoever loads the adapter by it."""
    path = folder / "adapter_config.json"
    if path.is_file():
        write_json(path, read_json(path) | {NOTE: True})


def _record_to_save(model: nn.Module) -> CutRecord:
    record = record_of(model)
    if record is None:
        raise CheckpointError(
            "the model was not cut, so there is no light checkpoint to save; use PEFT's save_pretrained."
        )
    return record
