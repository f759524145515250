"""The safetensors file of a module: its names, its types and its values. safetensors checks its header."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from safetensors import SafetensorError, safe_open

from lightpeft.audit.scan.finding import Finding, Level
from lightpeft.files import read_json

TYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""That a PEFT module may have."""
_HEADS = ("classifier", "score", "out_proj", "pooler", "pre_classifier")
_EMBEDDINGS = (*EMBEDDING_LAYER_NAMES, "word_embeddings", "wte", "shared", "embed_in", "embed_out")
_SHOWN = 20


def check_tensors(folder: Path) -> list[Finding]:
    """Types, names and values of `adapter_model.safetensors`; nothing is unpickled.

    Returns:
        findings of the rules header, values and embeddings; of values only where types and names are sound.
    """
    try:
        with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            types = {part.get_dtype() for part in parts.values()}
            empty = [name for name, part in parts.items() if 0 in part.get_shape()]
            found = list(_check_names(folder, parts, empty, types))
            if not any(finding.level == "error" for finding in found):
                bad = [name for name in parts if not _is_finite(file.get_tensor(name))]
                found += _named("values", "error", "NaN or infinite values in {} tensors", bad)
    except (SafetensorError, OSError) as error:
        return [_finding("header", "error", f"safetensors cannot read it ({error})")]
    return found


def _check_names(folder: Path, names: Iterable[str], empty: list[str], types: set[str]) -> Iterable[Finding]:
    if not (names := sorted(names)):
        yield _finding("header", "error", "it has no tensors")
    if odd := sorted(types - TYPES):
        expected = ", ".join(sorted(TYPES))
        yield _finding("header", "error", f"it has values of type {', '.join(odd)}, expected {expected}")
    yield from _named("header", "error", "{} tensors have no values", sorted(empty))
    saved = read_json(folder / CONFIG_NAME).get("modules_to_save")
    wanted = {str(name).split(".")[-1] for name in saved} if isinstance(saved, list) else set()
    inside = [name for name in names if not _is_asked_for(name, wanted)]
    base = [name for name in inside if set(_EMBEDDINGS) & set(name.split("."))]
    rest = sorted(set(inside) - set(base))
    yield from _named("header", "error", f"{{}} tensors belong to nothing that {CONFIG_NAME} asks for", rest)
    yield from _named("embeddings", "note", "{} tensors take the place of the base's embeddings", base)


def _is_asked_for(name: str, saved: set[str]) -> bool:
    parts = name.split(".")
    return any(part.startswith(_PREFIXES) for part in parts) or bool({*saved, *_HEADS} & set(parts))


_PREFIXES = (*PEFT_TYPE_TO_PREFIX_MAPPING.values(), "prompt_embeddings", "prompt_encoder")


def _is_finite(values: torch.Tensor) -> bool:
    """Without a copy of them."""
    return bool(torch.stack(torch.aminmax(values)).isfinite().all())


def _named(rule: str, level: Level, what: str, names: list[str]) -> Iterable[Finding]:
    if names:
        message = f"{what.format(len(names))}, {names[0]} first"
        yield _finding(rule, level, message, tensors=names[:_SHOWN])


def _finding(rule: str, level: Level, what: str, **evidence: Any) -> Finding:
    message = f"{SAFETENSORS_WEIGHTS_NAME}: {what}"
    return Finding(rule, level, message, {"file": SAFETENSORS_WEIGHTS_NAME, **evidence})
