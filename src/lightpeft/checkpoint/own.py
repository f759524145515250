"""Tensors of a base that its folder does not give, which a checkpoint stores; and the dtypes of all."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.anatomy import base_of, find_anatomy
from lightpeft.checkpoint.base import DTYPES
from lightpeft.checkpoint.origin import Origin, origin_of
from lightpeft.errors import CheckpointError
from lightpeft.linears import is_packed, is_quantised
from lightpeft.surgery import TRAINED, base_digests, digest_of, record_of
from lightpeft.wrapping import base_buffers, base_parameters, copied_parameters


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What neither the base's folder nor PEFT's file restores, as it is now, by names without PEFT.

    What was trained beside the adapter (norms, biases, embeddings, poolers, heads), resized, merged into or
    replaced before the run, or drawn at random when the base was loaded. Of a base whose folder is not
    known, what was trained, poolers, and what is on top of the encoder.
    """
    base, record, origin = base_of(model), record_of(model), origin_of(model)
    before = base_digests(model) if record is None else record.base
    stored = frozenset() if record is None else record.own
    cut, copied = _linears(model), copied_parameters(base)
    own = {
        name: parameter.detach()
        for name, parameter in base_parameters(base).items()
        if name not in copied
        and not is_packed(parameter)
        and (
            name in stored
            or parameter.requires_grad
            or not _is_given(name, before, origin, base)
            or (name.rpartition(".")[0] not in cut and _was_changed(parameter, before.get(name)))
        )
    }
    of_libraries = {id(one) for module in base.modules() if is_quantised(module) for one in module.buffers()}
    return own | {
        name: buffer
        for name, buffer in base_buffers(base).items()
        if buffer.is_floating_point()
        and id(buffer) not in of_libraries
        and origin.buffers.get(name) != digest_of(buffer)
    }


def _linears(model: nn.Module) -> frozenset[str]:
    """The linears that a cut makes smaller, or folds something into."""
    units = (units for layer in find_anatomy(model).layers for units in layer.units)
    return frozenset(name for one in units for name in one.linears)


def _was_changed(parameter: Tensor, before: str | None) -> bool:
    """Whether a parameter that no cut reaches has other values, in the same dtype, than before the cut."""
    now = digest_of(parameter.detach())
    return before is not None and now.partition("]")[0] == before.partition("]")[0] and now != before


def _is_given(name: str, before: Mapping[str, str], origin: Origin, base: nn.Module) -> bool:
    """Whether loading the base anew and cutting it gives the parameter."""
    if name not in before:  # the cut made it
        return True
    if before[name].endswith(TRAINED):
        return False
    if origin.known:
        return origin.digests.get(name) == before[name]
    encoder = f"{base.base_model_prefix}." if base.base_model is not base else ""
    return name.startswith(encoder) and not name.startswith(f"{encoder}pooler.")


@torch.no_grad()
def restore_tensors(model: nn.Module, own: Mapping[str, Tensor], directory: Path) -> None:
    """Put back what `own_tensors` gave.

    Raises:
        CheckpointError: a name or shape that the model does not have.
    """
    base = base_of(model)
    parameters, buffers = base_parameters(base), base_buffers(base)
    for name, value in own.items():
        target = parameters.get(name, buffers.get(name))
        if target is None or target.shape != value.shape:
            shape = None if target is None else tuple(target.shape)
            raise CheckpointError(
                f"{directory} stores {name} of shape {tuple(value.shape)}, the base has {shape}."
            )
        # Not in place: the old data may be shared with a base in memory.
        target.data = value.to(target.device)


def dtypes_of(model: nn.Module, adapter: str = "default") -> dict[str, Any]:
    """The dtype of every floating tensor, as JSON: the one that most have, and those of the others.

    Args:
        adapter: the one that is saved; loaded, its name is `default`.
    """
    found = {name: str(tensor.dtype) for name, tensor in _floating(model, adapter)}
    most = Counter(found.values()).most_common(1)[0][0]
    return {"most": most, "others": {name: dtype for name, dtype in found.items() if dtype != most}}


def restore_dtypes(model: nn.Module, dtypes: Any, directory: Path) -> None:
    """Give every tensor the dtype that `dtypes_of` told.

    Raises:
        CheckpointError: it did not tell that.
    """
    try:
        most, others = dtypes["most"], dict(dtypes["others"])
        for name, tensor in _floating(model, "default"):
            tensor.data = tensor.data.to(DTYPES[others.get(name, most)])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory} does not tell the dtypes of its tensors: {error}.") from error


def _floating(model: nn.Module, adapter: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if str(tensor.dtype) in DTYPES and not is_packed(tensor):
            parts = ("default" if part == adapter else part for part in name.split("."))
            yield ".".join(parts), tensor
