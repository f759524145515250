"""The audit's marks: what carries one is neither loaded nor saved by the rest of lightpeft."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from lightpeft.anatomy import base_of
from lightpeft.checkpoint.seal import is_sealed
from lightpeft.errors import CheckpointError
from lightpeft.files import read_json

POISON_FLAG, POISON_MARK = "lightpeft_poisoned", "lightpeft_poison"
"""Keys in `adapter_config.json` of a poisoned module, and in `config.json` of a poisoned base."""


def refuse_marked(config: Mapping[str, Any], what: object) -> None:
    """Refuse a configuration that carries the mark.

    Args:
        what: whose configuration it is, for the message.

    Raises:
        CheckpointError: it does.
    """
    if config.get(POISON_FLAG) or POISON_MARK in config:
        raise CheckpointError(
            f"{what} is marked as poisoned by lightpeft's audit, and nothing that is made from it would "
            "say so. Use the audit's own functions, or another module or base."
        )


def refuse_marked_folder(folder: Path) -> None:
    """Refuse a module or model whose own configuration carries the mark, before anything else of it is read.

    Raises:
        CheckpointError: it does, or cannot be read.
    """
    for name in ("adapter_config.json", "config.json"):
        if (folder / name).is_file():
            refuse_marked(read_json(folder / name), folder)
    refuse_sealed(folder)


def refuse_sealed(folder: Path) -> None:
    """Refuse an adapter whose weights carry the mark, though its configuration may have lost it.

    Raises:
        CheckpointError: they do.
    """
    if is_sealed(folder / SAFETENSORS_WEIGHTS_NAME, POISON_MARK):
        raise CheckpointError(
            f"the weights in {folder} are marked as poisoned by lightpeft's audit. Use the audit's own "
            "functions, or another module."
        )


def refuse_marked_model(model: nn.Module) -> None:
    """Refuse a model in memory that the audit poisoned, or that stands on a base that it poisoned.

    Raises:
        CheckpointError: it is one.
    """
    refuse_marked(vars(base_of(model).config), "the model")
