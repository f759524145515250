"""How a base model is named in a checkpoint and found again."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from lightpeft.anatomy import base_of
from lightpeft.checkpoint.poison import refuse_marked_model
from lightpeft.errors import CheckpointError

AUTO_CLASSES: dict[str, Any] = {
    "AutoModelForSequenceClassification": AutoModelForSequenceClassification,
    "AutoModelForTokenClassification": AutoModelForTokenClassification,
    "AutoModelForImageClassification": AutoModelForImageClassification,
    "AutoModelForQuestionAnswering": AutoModelForQuestionAnswering,
    "AutoModelForCausalLM": AutoModelForCausalLM,
    "AutoModelForSeq2SeqLM": AutoModelForSeq2SeqLM,
    "AutoModelForMaskedLM": AutoModelForMaskedLM,
    "AutoModel": AutoModel,
}
_CLASSIFIERS = tuple(name for name in AUTO_CLASSES if name.endswith("Classification"))
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
_LABELS = ("id2label", "label2id", "problem_type")


def describe_base(model: nn.Module) -> dict[str, Any]:
    """What is needed to load the base again, as JSON values."""
    base = base_of(model)
    return {
        "name_or_path": _lasting_name(base.config._name_or_path),
        "revision": getattr(base.config, "_commit_hash", None),
        "auto_class": _auto_class(base),
        "dtype": str(next(base.parameters()).dtype),
        # Decoders come without one, and a classifier on top of them finds a text's end by it.
        "pad_token_id": getattr(base.config, "pad_token_id", None),
        **{key: getattr(base.config, key, None) for key in _LABELS},
    }


def load_base(described: dict[str, Any], path: str | None, attention: str | None) -> PreTrainedModel:
    """Load a base from the hub or a folder; `path` takes the place of the one in the checkpoint.

    Raises:
        CheckpointError: the base cannot be found, is of a class that lightpeft does not load, or is marked
            as poisoned.
    """
    name, auto_class = path or described.get("name_or_path"), described.get("auto_class")
    if auto_class not in AUTO_CLASSES:
        raise CheckpointError(
            f"the checkpoint was made from a base of class {auto_class!r}, which load() does not build; "
            "build it yourself and pass it as base=."
        )
    if not name:
        raise CheckpointError("the checkpoint does not name its base; pass base=.")
    options: dict[str, Any] = {"dtype": _DTYPES.get(str(described.get("dtype")), torch.float32)}
    if attention is not None:
        options["attn_implementation"] = attention
    if described.get("pad_token_id") is not None:
        options["pad_token_id"] = described["pad_token_id"]
    if auto_class in _CLASSIFIERS:
        # The base's own head may be for other labels; the trained one comes from the checkpoint.
        options |= _label_options(described) | {"ignore_mismatched_sizes": True}
    if path is None and not Path(name).is_dir() and described.get("revision"):
        options["revision"] = described["revision"]
    try:
        base = AUTO_CLASSES[auto_class].from_pretrained(name, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the base {name!r} cannot be loaded ({error}). Pass base= with its folder or hub name."
        ) from error
    assert isinstance(base, PreTrainedModel)
    refuse_marked_model(base)
    return base


def _lasting_name(name: str) -> str:
    """A folder by its absolute path, so that it is found from elsewhere too; a hub name as it is."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def _label_options(described: dict[str, Any]) -> dict[str, Any]:
    options = {key: described[key] for key in _LABELS if described.get(key) is not None}
    if "id2label" in options:
        options["id2label"] = {int(key): value for key, value in options["id2label"].items()}
    return options


def _auto_class(base: PreTrainedModel) -> str | None:
    for name, auto_class in AUTO_CLASSES.items():
        mapping = auto_class._model_mapping
        if type(base.config) in mapping and mapping[type(base.config)] is type(base):
            return name
    return None
