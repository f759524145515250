"""`load`: base + plan + adapter, with every part checked first."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lightpeft.adapters import find_lora_modules
from lightpeft.checkpoint.base import load_base
from lightpeft.checkpoint.format import PRUNING, read_record
from lightpeft.checkpoint.save import plain_parameters
from lightpeft.errors import CheckpointError, PlanError
from lightpeft.files import read_json
from lightpeft.surgery import CutRecord, reapply


def load(
    folder: str | Path,
    base: str | Path | PreTrainedModel | None = None,
    *,
    attn_implementation: str | None = None,
    is_trainable: bool = False,
) -> PeftModel:
    """Rebuild the cut model with its adapter from a light checkpoint (a folder or a hub name).

    Args:
        base: the base's folder or hub name, or the loaded base itself (it is copied, not changed); by
            default the one that the checkpoint names.
        is_trainable: keep the adapter trainable.

    Raises:
        CheckpointError: a missing, damaged or truncated file, an unknown version, a plan that does not
            fit, or another base than the one that was cut.
    """
    directory = find_folder(folder)
    record, described, rest = read_record(directory)
    check_adapter_config(directory)
    if isinstance(base, PreTrainedModel):
        bare = copy.deepcopy(base)
    else:
        path = None if base is None else str(base)
        bare = load_base(described.get("base") or {}, path, attn_implementation)
    try:
        reapply(bare, record)
    except (PlanError, CheckpointError) as error:
        raise CheckpointError(f"{directory} does not fit the base: {error}") from error
    model = _attach_adapter(bare, directory, is_trainable)
    _check_adapter(model, record, directory)
    _restore(model, rest, directory)
    model.train(is_trainable)
    return model


def find_folder(folder: str | Path) -> Path:
    """The local folder of a light checkpoint, fetched from the hub if `folder` is a hub name."""
    path = Path(folder)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{folder} is neither a folder nor a light checkpoint that the hub gave ({error})."
        ) from error


def is_light_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` is a local light checkpoint."""
    return (Path(folder) / PRUNING).is_file()


def check_adapter_config(directory: Path) -> None:
    """Refuse an adapter configuration that would make PEFT import code or read pickles.

    Raises:
        CheckpointError: such a configuration, or one that is not LoRA.
    """
    config = read_json(directory / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{directory}/adapter_config.json has the PEFT type {config.get('peft_type')!r}, expected LORA."
        )
    importing = [key for key in ("megatron_config", "auto_mapping") if config.get(key)]
    if importing:
        raise CheckpointError(
            f"{directory}/adapter_config.json sets {', '.join(importing)}, which makes PEFT import code "
            "that the file names. Refused."
        )
    if not (directory / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{directory}/adapter_model.safetensors is missing.")


def _attach_adapter(base: PreTrainedModel, directory: Path, is_trainable: bool) -> PeftModel:
    try:
        return PeftModel.from_pretrained(base, str(directory), is_trainable=is_trainable)
    except (RuntimeError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the adapter in {directory} does not fit the cut base: {error}") from error


def _check_adapter(model: PeftModel, record: CutRecord, directory: Path) -> None:
    planned = {module.name: len(module.ranks) for module in record.plan.kept_modules}
    found = {module.name: module.rank for module in find_lora_modules(model)}
    if planned != found:
        odd = sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))
        raise CheckpointError(
            f"{directory}: adapter_config.json and {PRUNING} disagree about the modules {odd[:3]}."
        )


@torch.no_grad()
def _restore(model: PeftModel, rest: dict[str, Tensor], directory: Path) -> None:
    parameters: dict[str, Any] = plain_parameters(model.get_base_model())
    for name, value in rest.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != value.shape:
            shape = None if parameter is None else tuple(parameter.shape)
            raise CheckpointError(
                f"{directory} stores {name} of shape {tuple(value.shape)}, the base has {shape}."
            )
        parameter.copy_(value)
