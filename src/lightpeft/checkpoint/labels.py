"""Give a base in memory the labels of a checkpoint: another task may have more, fewer, or one number."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lightpeft.errors import CheckpointError

_LABELS = ("id2label", "label2id", "problem_type")


def fit_labels(model: PreTrainedModel, described: Mapping[str, Any]) -> frozenset[str]:
    """Change `model`, a copy of its own, to the labels and the padding token that a checkpoint describes.

    Modules of the head that have another shape for so many labels are built anew, all zero.

    Returns:
        The parameters of those modules, which are to be filled.

    Raises:
        CheckpointError: the head has weights of its own that depend on the labels, outside any module.
    """
    config, before, wanted = model.config, model.config.num_labels, described.get("config") or {}
    pad = (described.get("tokens") or wanted).get("pad_token_id")
    if pad is not None:
        config.pad_token_id = pad
    for name, value in _label_settings(described.get("auto_class"), wanted).items():
        setattr(config, name, value)
    return frozenset() if config.num_labels == before else _rebuild_head(model)


def _label_settings(auto_class: str | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Of a classifier, or of a class that is not in lightpeft's table; others do not read them."""
    if not str(auto_class or "Classification").endswith("Classification"):
        return {}
    settings = {name: wanted[name] for name in _LABELS if name in wanted}
    if settings.get("id2label") is not None:
        settings["id2label"] = {int(key): value for key, value in settings["id2label"].items()}
    return settings


@torch.no_grad()
def _rebuild_head(model: PreTrainedModel) -> frozenset[str]:
    # Building a model draws random numbers; those of the user's run stay where they are.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        fresh = type(model)(copy.deepcopy(model.config))
    for name, module in fresh.named_modules():
        if "num_labels" in vars(module):
            model.get_submodule(name).num_labels = module.num_labels
    blank: set[str] = set()
    for name in _changed_modules(model, fresh):
        module = fresh.get_submodule(name).to_empty(device=model.device).to(model.dtype)
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
        model.set_submodule(name, module.train(model.training))
        blank |= {f"{name}.{key}" for key, _ in module.named_parameters()}
    return frozenset(blank)


def _changed_modules(model: PreTrainedModel, fresh: nn.Module) -> list[str]:
    """Modules on top of the encoder whose parameters have another shape in `fresh`."""
    encoder = None if model.base_model is model else f"{model.base_model_prefix}."
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    changed = {
        name.rpartition(".")[0]
        for name, parameter in fresh.named_parameters()
        if encoder is not None and not name.startswith(encoder) and shapes.get(name) != parameter.shape
    }
    if "" in changed:
        raise CheckpointError(
            f"the head of {type(model).__name__} cannot be changed to {model.config.num_labels} labels; give "
            "a base with so many."
        )
    return sorted(changed)
