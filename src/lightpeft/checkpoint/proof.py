"""Proof of a checkpoint: what was written is read back, and what is loaded computes the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightpeft.checkpoint.format import ADAPTER, read_record
from lightpeft.errors import CheckpointError
from lightpeft.surgery import evaluating, record_of


def read_back(folder: Path, model: nn.Module) -> None:
    """Read a light checkpoint that was just written: digests, plan, and the shapes of the adapter's tensors.

    Raises:
        CheckpointError: what lies there is not what was in memory.
    """
    record = record_of(model)
    assert record is not None
    written = read_record(folder)[0]
    if written.plan != record.plan:
        raise CheckpointError(f"the plan in {folder} is not the model's; the disk may be faulty.")
    if not isinstance(model, PeftModel):
        return
    state = get_peft_model_state_dict(model, adapter_name=record.adapter, save_embedding_layers=False)
    try:
        with safe_open(folder / ADAPTER, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / ADAPTER} cannot be read back: {error}") from error
    wanted = {name: tuple(value.shape) for name, value in state.items()}
    if found != wanted:
        odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise CheckpointError(f"{folder / ADAPTER} has not the model's tensors: {', '.join(odd[:3])}.")


def require_same_outputs(model: nn.Module, loaded: nn.Module, batch: Mapping[str, Any], folder: Path) -> None:
    """Check that a loaded model computes what the one in memory does, on a batch without labels.

    Raises:
        CheckpointError: it does not.
    """
    device = next(model.parameters()).device
    one, two = outputs_of(model, batch), outputs_of(loaded.to(device), batch)
    for name, difference in differences(one, two).items():
        if not difference <= 16 * torch.finfo(one[name].dtype).eps:
            raise CheckpointError(
                f"the light checkpoint in {folder} computes other {name} than the model in memory (by "
                f"{difference:.2g}). Please report this with the model's class and PEFT configuration; the "
                "model in memory is good, so use it before the process ends."
            )


def require_close(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float, what: str
) -> float:
    """Check what another form of a light model puts out; the largest of the `differences`.

    Args:
        what: the form, for the message.

    Raises:
        CheckpointError: an output differs by more than `tolerance`.
    """
    found_differences = differences(expected, found)
    for name, difference in found_differences.items():
        if not difference <= tolerance:
            raise CheckpointError(
                f"{what} computes other {name} than the light model (by {difference:.2g}, allowed: "
                f"{tolerance:g}), so it was not kept. Write the small model with its plan (--to merged), and "
                "please report this with the model's configuration."
            )
    return max(found_differences.values(), default=0.0)


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """Per output the largest difference, relative to the largest value (at least 1)."""
    return {
        name: float((value - found[name]).abs().max()) / max(1.0, float(value.abs().max()))
        for name, value in expected.items()
    }


def outputs_of(
    model: nn.Module, batch: Mapping[str, Any], autocast: torch.autocast | None = None
) -> dict[str, Tensor]:
    """Floating outputs in eval mode, without what accelerate put around the forward.

    Args:
        autocast: by default none.
    """
    off = torch.autocast(next(model.parameters()).device.type, enabled=False)
    with evaluating(model), autocast or off:
        outputs = type(model).forward(model, **batch)
    return {
        name: value.float() if value.dtype.itemsize < 4 else value
        for name, value in outputs.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
