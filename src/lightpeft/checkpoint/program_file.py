"""A light model as a program of torch.export, for PyTorch without transformers, and for AOTInductor."""

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lightpeft.checkpoint.graph import Graph
from lightpeft.checkpoint.traced import trace, write_signature
from lightpeft.surgery import is_of_one_dtype

FILE = "model.pt2"


def save_program(model: PeftModel | PreTrainedModel, folder: Path) -> Graph:
    """Write a light model as `model.pt2` with `signature.json`, for any number of texts of any length.

    It computes in the dtype of the base; in float32 where that has several.

    Args:
        model: what `load` gave, whose adapter is merged in place, where it can be; or one without PEFT.
        folder: is there already.

    Returns:
        the program, as it was loaded.

    Raises:
        CheckpointError: it cannot be traced, or computes something else than the light model.
    """
    traced = trace(model if is_of_one_dtype(model) else model.float())
    torch.export.save(traced.program, folder / FILE)
    module = torch.export.load(folder / FILE).module()

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            found: dict[str, Tensor] = module(**inputs)
        return found

    difference = traced.require_same(run, "the traced program")
    write_signature(folder, traced, file=FILE, largest_difference=difference)
    return Graph(traced.config, traced.inputs, run)
