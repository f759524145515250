"""Short names for the exact weights of a base, to refuse another base later."""

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
import xxhash
from peft import PeftModel
from torch import Tensor, nn

from lightpeft.anatomy import base_of
from lightpeft.linears import is_packed
from lightpeft.wrapping import base_parameters, copied_parameters

Digests = dict[str, str]
"""Per tensor, by its name without PEFT: dtype, shape and digest of all its values."""

TRAINED = "trained"
"""In place of a digest: what the run trains has none, and is stored instead."""

PACKED = "quantised"
"""In place of a digest: a light checkpoint is of the values that this was quantised from."""


def base_digests(model: nn.Module) -> Digests:
    """Digest of every parameter of the base inside `model`, each value of it, embeddings and heads included.

    XXH3 with 128 bits finds any accident, at the speed of memory; it is no proof against a forger. What a
    PEFT model trains of its base, or a copy of it, and quantised weights are told by dtype and shape alone.
    For uncut models.
    """
    base, trains = base_of(model), isinstance(model, PeftModel)
    copied = copied_parameters(base)

    def digest(name: str, parameter: Tensor) -> str:
        if is_packed(parameter):
            return _shape_of(parameter) + PACKED
        if trains and (parameter.requires_grad or name in copied):
            return _shape_of(parameter) + TRAINED
        return digest_of(parameter.detach())

    return {name: digest(name, parameter) for name, parameter in base_parameters(base).items()}


def digest_of(tensor: Tensor) -> str:
    """Dtype, shape and XXH3 of all values: `float32 [2, 3] 0123…`."""
    data = tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
    return _shape_of(tensor) + xxhash.xxh3_128_hexdigest(data.data)


def shape_and_dtype(digest: str) -> tuple[list[int], torch.dtype]:
    """Of the tensor that `digest_of` was given.

    Raises:
        ValueError: it is no such digest.
    """
    name, _, rest = digest.partition(" ")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{digest!r} names no dtype")
    shape = json.loads(rest[: rest.index("]") + 1])
    return [int(size) for size in shape], dtype


def other_tensors(wanted: Mapping[str, str], found: Mapping[str, str], own: Iterable[str] = ()) -> list[str]:
    """Names of the tensors in `wanted` that `found` lacks or has with other values.

    Those in `own`, and those that were trained in either, do not count.
    """
    spared = set(own)
    return [
        name
        for name, digest in wanted.items()
        if name not in spared and not _is_trained(digest, found.get(name, "")) and found.get(name) != digest
    ]


def _is_trained(*digests: str) -> bool:
    return any(digest.endswith(TRAINED) for digest in digests)


def _shape_of(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} "


def fingerprint(model: nn.Module) -> str:
    """One name for the encoder of an uncut model: SHA-256 over the digests of its weights.

    What fine-tuning may change does not count: poolers, heads on top, and biases.
    """
    base = base_of(model)
    encoder = "" if base.base_model is base else f"{base.base_model_prefix}."
    parts = [
        f"{name.removeprefix(encoder)}|{digest}"
        for name, digest in sorted(base_digests(model).items())
        if name.startswith(encoder)
        and not name.removeprefix(encoder).startswith("pooler.")
        and not name.endswith(".bias")
    ]
    return hashlib.sha256("\n".join([base.config.model_type, *parts]).encode()).hexdigest()
