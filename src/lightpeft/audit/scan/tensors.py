"""The safetensors file of a module: its header by our own reading, its names, and its values."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from lightpeft.audit.scan.finding import Finding
from lightpeft.files import read_json

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes a value of the types that a PEFT module may have."""
MAX_HEADER = 100_000_000
_PARTS = ("lora_", "ia3_", "bottleneck_")
_HEADS = ("classifier", "score", "out_proj", "pooler", "pre_classifier")


def check_tensors(folder: Path) -> list[Finding]:
    """Header, names and values of `adapter_model.safetensors`; nothing is unpickled.

    Returns:
        findings of the rules header and values; of values only where the header is sound.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        header = _read_header(path)
    except _HeaderError as error:
        return [_finding("header", str(error))]
    odd = sorted(name for name in header if not _is_asked_for(name, _saved_modules(folder)))
    found = []
    if odd:
        message = f"{len(odd)} tensors belong to nothing that {CONFIG_NAME} asks for, {odd[0]} first"
        found.append(_finding("header", message, tensors=odd[:20]))
    return [*found, *_check_values(path)]


class _HeaderError(Exception):
    """What is wrong with a header."""


def _read_header(path: Path) -> dict[str, Any]:
    """The tensors that a file declares, by name, after a check that they fill it exactly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise _HeaderError(f"its header would have {length:,} bytes, in a file of {size:,}")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        spans = sorted(_span(name, entry) for name, entry in header.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _HeaderError(f"its header cannot be read ({error})") from error
    ends = [0, *(end for _, end in spans)]
    if [start for start, _ in spans] != ends[:-1] or ends[-1] != size - 8 - length:
        raise _HeaderError("its tensors overlap, leave gaps, or do not fill the file")
    if not spans:
        raise _HeaderError("it has no tensors")
    return dict(header)


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in BYTES:
        raise ValueError(f"{name} is of type {dtype}, expected one of {', '.join(BYTES)}")
    if end - start != math.prod(shape) * BYTES[dtype] or start < 0 or any(one < 0 for one in shape):
        raise ValueError(f"{name} of shape {shape} has {end - start} bytes")
    return start, end


def _saved_modules(folder: Path) -> tuple[str, ...]:
    value = read_json(folder / CONFIG_NAME).get("modules_to_save")
    return tuple(str(name) for name in value) if isinstance(value, list) else ()


def _is_asked_for(name: str, saved: tuple[str, ...]) -> bool:
    parts = name.split(".")
    return any(part.startswith(_PARTS) for part in parts) or any(
        wanted.split(".")[-1] in parts for wanted in (*saved, *_HEADS)
    )


def _check_values(path: Path) -> list[Finding]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            bad = [name for name in names if not torch.isfinite(file.get_tensor(name)).all()]
    except (SafetensorError, OSError) as error:
        return [_finding("header", f"safetensors cannot read it ({error})")]
    if not bad:
        return []
    return [
        _finding("values", f"NaN or infinite values in {len(bad)} tensors, {bad[0]} first", tensors=bad[:20])
    ]


def _finding(rule: str, what: str, **evidence: Any) -> Finding:
    message = f"{SAFETENSORS_WEIGHTS_NAME}: {what}"
    return Finding(rule, "error", message, {"file": SAFETENSORS_WEIGHTS_NAME, **evidence})
