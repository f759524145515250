"""Going on from an adapter that was trained elsewhere, with plain PEFT."""

import logging
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from lightpeft.adapters import find_modules
from lightpeft.checkpoint import (
    check_adapter_config,
    check_complete,
    find_folder,
    is_light_checkpoint,
)
from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.files import read_json
from lightpeft.wrapping import base_parameters, copied_parameters

logger = logging.getLogger(__name__)


def find_adapter(name: str, *, marked_too: bool = False) -> Path:
    """The local folder of a PEFT adapter, fetched from the hub if `name` is a hub name; its files checked.

    Args:
        marked_too: also one that the audit marked as poisoned; for the audit itself.

    Raises:
        ConfigError: there is none, it could run code, is of a form that cannot be cut, or is cut already.
    """
    try:
        folder = find_folder(name)
        check_adapter_config(folder, marked_too=marked_too)
    except CheckpointError as error:
        raise ConfigError(f"the adapter {name!r} cannot be used: {error}") from error
    if is_light_checkpoint(folder):
        raise ConfigError(
            f"{name} is a light checkpoint, cut already; to train it on, use lightpeft.load(..., "
            "is_trainable=True), a plain Trainer, and lightpeft.save."
        )
    return folder


def base_of_adapter(name: str) -> str:
    """The base that an adapter says it was trained on.

    Raises:
        ConfigError: see `find_adapter`; or it does not say.
    """
    config = read_json(find_adapter(name) / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"the adapter {name!r} does not say which base it is for; give --model.")
    return str(base)


def continue_adapter(
    base: PreTrainedModel, name: str, new: set[str], *, marked_too: bool = False
) -> PeftModel:
    """Put the adapter `name` on `base`, trainable.

    Args:
        new: parameters that the base's checkpoint does not have; what of them the adapter does not bring is
            trained, too.
        marked_too: see `find_adapter`.

    Raises:
        ConfigError: see `find_adapter`; or it does not fit the base or its labels.
    """
    folder = find_adapter(name, marked_too=marked_too)
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
        check_complete(model, folder, embeddings_too=marked_too)
        find_modules(model)
    except (CheckpointError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the adapter {name!r} does not fit the base (another base, other labels?): {error}"
        ) from error
    inner: Any = model.get_base_model()
    copied = copied_parameters(inner)
    for key, parameter in base_parameters(inner).items():
        if key in new and key not in copied:
            parameter.requires_grad_(True)
    logger.info("going on from the adapter %s", name)
    return model
