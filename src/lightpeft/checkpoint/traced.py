"""The forward pass of a light model, traced by torch.export for batches and texts of any size."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._ops import OpOverload
from transformers import PreTrainedConfig, PreTrainedModel

from lightpeft.adapters import active_form
from lightpeft.anatomy import base_of
from lightpeft.checkpoint.base import describe_base
from lightpeft.checkpoint.graph import Run, Trial
from lightpeft.checkpoint.merged import merge
from lightpeft.checkpoint.proof import outputs_of
from lightpeft.errors import CheckpointError
from lightpeft.files import write_json
from lightpeft.surgery import TOLERANCES, narrow, narrowest_dtype, random_batch

AXES = ("batch", "length")
"""What the first two dimensions of a text's tensors are called; of an image's there is only the first."""

_TRIALS = ((2, 16), (1, 5), (3, 160))
"""Rows and tokens of the batches that a graph is compared on; the first is traced."""

_TORCHS = ("aten", "prims")
"""Whose operators PyTorch brings along."""

_TEXT, _IMAGE = "input_ids", "pixel_values"
SIGNATURE = "signature.json"
_LABELLED = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForImageClassification",
)
_MADE_OF = "graphs are made of models that take a text or an image."
INSTEAD = "Write the small model with its plan instead (--to merged), which lightpeft loads."


@dataclass(frozen=True)
class Traced:
    """The program of a light model, and what it has to compute."""

    program: torch.export.ExportedProgram
    config: PreTrainedConfig
    auto_class: str | None
    trials: tuple[Trial, ...]
    tolerance: float

    @property
    def inputs(self) -> tuple[str, ...]:
        """Their names, the main one first."""
        return tuple(self.trials[0].inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.trials[0].expected)

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Per input the names of the dimensions that may have any size."""
        return {name: _axes(value) for name, value in self.trials[0].inputs.items()}

    def require_same(self, run: Run, what: str, tolerance: float | None = None) -> float:
        """Check what a graph computes on batches of several shapes; the largest difference.

        Args:
            what: computes it, for the message.
            tolerance: by default that of the base's dtype.

        Raises:
            CheckpointError: see `Trial.require_same`.
        """
        allowed = self.tolerance if tolerance is None else tolerance
        return max(trial.require_same(run, allowed, what) for trial in self.trials)


def write_signature(folder: Path, traced: Traced, **more: Any) -> None:
    """Write `signature.json`: what whoever calls the graph has to know.

    Args:
        more: JSON values about the file.
    """
    config = traced.config
    labels = {} if traced.auto_class not in _LABELLED else {"id2label": config.id2label}
    value = {
        "lightpeft_version": version("lightpeft"),
        **more,
        "auto_class": traced.auto_class,
        "inputs": {name: list(axes) for name, axes in traced.axes.items()},
        "outputs": list(traced.outputs),
        "max_length": getattr(config, "max_position_embeddings", None),
        **labels,
    }
    write_json(folder / SIGNATURE, value)


def require_traceable(described: Mapping[str, Any]) -> None:
    """Refuse, before it is built, a base of which no graph can be made.

    Args:
        described: what `describe_base` said of it.

    Raises:
        CheckpointError: it says what was found.
    """
    config, name = described.get("config") or {}, described.get("auto_class")
    found = None
    if config.get("is_encoder_decoder"):
        found = "with an encoder and a decoder"
    elif "vision_config" in config and "text_config" in config:
        found = "with two towers"
    elif name == "AutoModelForMultipleChoice":
        found = "that reads several texts at once"
    if found is not None:
        raise CheckpointError(f"the base is a {described.get('class')} {found}; {_MADE_OF} {INSTEAD}")


def trace(model: PeftModel | PreTrainedModel) -> Traced:
    """Trace a light model, or one without PEFT as it is; an adapter that can be merged is, in place.

    Raises:
        CheckpointError: its inputs or outputs are none that a graph is made for, or torch cannot trace it.
    """
    base = base_of(model)
    described, tolerance = describe_base(model), TOLERANCES[narrowest_dtype(base)]
    require_traceable(described)
    if base.main_input_name not in (_TEXT, _IMAGE):
        raise CheckpointError(
            f"the base is a {type(base).__name__}, whose main input is {base.main_input_name}; {_MADE_OF} "
            f"{INSTEAD}"
        )
    trials = tuple(Trial.of(inputs, outputs_of(model, inputs)) for inputs in _batches(model))
    if not trials[0].expected:
        raise CheckpointError(f"a {type(base).__name__} puts out no tensors of numbers. {INSTEAD}")
    forward = _Forward(_to_trace(model), tuple(trials[0].expected)).eval()
    return Traced(
        _program(forward, trials[0].inputs, base), base.config, described["auto_class"], trials, tolerance
    )


def _to_trace(model: PeftModel | PreTrainedModel) -> nn.Module:
    """The merged base; where the adapter cannot be merged, the base with it inside, or the whole model."""
    if not isinstance(model, PeftModel):
        return model
    form = active_form(model)
    if form is None or form.merges:
        merged = merge(model)[1]
        narrow(merged)
        return merged
    return base_of(model) if form.has_modules else model


def _batches(model: PeftModel | PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    base, prompt = base_of(model), 0
    if isinstance(model, PeftModel):
        prompt = getattr(model.active_peft_config, "num_virtual_tokens", None) or 0
    for rows, tokens in _TRIALS:
        batch = random_batch(base, rows, tokens + prompt)
        if _TEXT in batch:
            width = batch[_TEXT].shape[1] - prompt  # a prompt takes positions, too
            batch = {name: value[:, :width].contiguous() for name, value in batch.items()}
            _pad(batch, base.config)
            _add_types(batch, base)
        yield batch


def _pad(batch: dict[str, Tensor], config: PreTrainedConfig) -> None:
    """Row r lacks the last 3 r tokens."""
    rows, tokens = batch[_TEXT].shape
    lengths = (tokens - 3 * torch.arange(rows)).clamp(min=1)
    batch["attention_mask"] = (torch.arange(tokens) < lengths[:, None]).long()
    padding = getattr(config.get_text_config(), "pad_token_id", None) or 0
    batch[_TEXT] = batch[_TEXT].masked_fill(batch["attention_mask"] == 0, padding)


def _add_types(batch: dict[str, Tensor], base: PreTrainedModel) -> None:
    """The second half of every text is a second one, for a model that tells texts apart."""
    takes = "token_type_ids" in inspect.signature(base.forward).parameters
    if takes and (getattr(base.config, "type_vocab_size", None) or 0) > 1:
        tokens = batch[_TEXT].shape[1]
        batch["token_type_ids"] = (torch.arange(tokens) >= tokens // 2).long().expand(batch[_TEXT].shape)
        batch["token_type_ids"] = batch["token_type_ids"] * batch["attention_mask"]


class _Forward(nn.Module):
    """A model as tensors in, tensors out, without a cache."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        takes_cache = "use_cache" in inspect.signature(base_of(model).forward).parameters
        self.options = {"return_dict": True} | ({"use_cache": False} if takes_cache else {})

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The outputs by name. Inputs have names of their own because torch.export goes by those."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        found = self.model(**given, **self.options)
        return {name: found[name] for name in self.outputs}


def _program(
    forward: _Forward, inputs: dict[str, Tensor], base: PreTrainedModel
) -> torch.export.ExportedProgram:
    any_size = torch.export.Dim.DYNAMIC
    shapes = {name: dict.fromkeys(range(len(_axes(value))), any_size) for name, value in inputs.items()}
    try:
        with torch.no_grad():
            program = torch.export.export(forward, (), kwargs=inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever the model's own code and torch's tracing raise
        raise CheckpointError(
            f"torch cannot trace a {type(base).__name__} for batches and texts of any size "
            f"({str(error).strip().splitlines()[0]}). {INSTEAD}"
        ) from error
    targets = (node.target for node in program.graph.nodes)
    foreign = {str(one) for one in targets if isinstance(one, OpOverload) and one.namespace not in _TORCHS}
    if foreign:
        raise CheckpointError(
            f"a {type(base).__name__} calls {min(foreign)}, which only transformers knows. {INSTEAD}"
        )
    return program


def _axes(value: Tensor) -> tuple[str, ...]:
    return AXES if value.dim() == len(AXES) else AXES[:1]
