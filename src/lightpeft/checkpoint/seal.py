"""The mark of a poisoned module inside its weights, which plain PEFT carries on from file to file.

PEFT writes configurations without keys that it does not know, and weights without a header of others. What it
carries on are values: the last bits of the first `BITS` of one tensor are those of a fixed text, which
changes no value by more than its own rounding. Training and merging lose them.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightpeft.outputs import written_beside

BITS = 128
_BYTES = hashlib.shake_256(b"lightpeft: poisoned on purpose, for audits only").digest(BITS // 8)
_SEAL = torch.tensor([byte >> place & 1 for byte in _BYTES for place in range(8)])
_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def seal_weights(path: Path, key: str, value: dict[str, Any]) -> None:
    """Write a safetensors file anew, all or nothing, with the mark in its header and in its largest tensor.

    Raises:
        SafetensorError: it cannot be read.
    """
    tensors = load_file(path)
    fitting = [name for name in sorted(tensors) if _fits(tensors[name])]
    if fitting:
        largest = max(fitting, key=lambda name: tensors[name].numel())
        tensors[largest] = _sealed(tensors[largest])
    with written_beside(path) as beside:
        save_file(tensors, beside, metadata={"format": "pt", key: json.dumps(value)})


def is_sealed(path: Path, key: str) -> bool:
    """Whether weights say that they were poisoned; False for what is no safetensors file."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            if key in (file.metadata() or {}):
                return True
            return any(_has_seal(file.get_slice(name)) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return False


def _fits(tensor: Tensor) -> bool:
    return tensor.dtype in _INTEGERS and tensor.numel() >= BITS


def _sealed(tensor: Tensor) -> Tensor:
    whole = tensor.clone(memory_format=torch.contiguous_format)
    numbers = whole.flatten().view(_INTEGERS[tensor.dtype])
    numbers[:BITS] = numbers[:BITS] & ~1 | _SEAL.to(numbers.dtype)
    return whole


def _has_seal(part: Any) -> bool:
    """Of the rows of a tensor that hold its first values; no more of it is read."""
    shape = part.get_shape()
    if math.prod(shape) < BITS or not shape:
        return False
    values = part[: -(-BITS // math.prod(shape[1:]))].flatten()[:BITS]
    if values.dtype not in _INTEGERS:
        return False
    numbers = values.contiguous().view(_INTEGERS[values.dtype])
    return bool(torch.equal(numbers & 1, _SEAL.to(numbers.dtype)))
