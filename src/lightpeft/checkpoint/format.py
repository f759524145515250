"""What lightpeft's own files in a checkpoint hold: `pruning.json` and `light.safetensors`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from lightpeft.errors import CheckpointError, PlanError
from lightpeft.files import file_sha256, read_json, read_tensors, under, write_json, write_tensors
from lightpeft.plan import Plan
from lightpeft.surgery import CutRecord

FORMAT_VERSION = 2
PRUNING = "pruning.json"
TENSORS = "light.safetensors"
ADAPTER = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
LIGHT, MERGED = "light", "merged"

_VECTORS = ("gates", "constants", "row_factors", "shifts")


def write_record(folder: Path, record: CutRecord, extra: dict[str, Any], rest: dict[str, Tensor]) -> None:
    """Write the two files into `folder`; `pruning.json` last, naming the hashes of the tensors.

    Args:
        extra: further JSON values (base, metrics, versions).
        rest: further tensors to restore on load, by parameter name.
    """
    tensors = {f"rest.{name}": tensor for name, tensor in rest.items()}
    for kind in _VECTORS:
        tensors |= {f"{kind}.{name}": tensor for name, tensor in getattr(record, kind).items()}
    for name, (left, right) in record.pairs.items():
        tensors |= {f"left.{name}": left, f"right.{name}": right}
    plan = record.plan.to_dict()
    write_tensors(folder / TENSORS, tensors, {"format_version": FORMAT_VERSION, "plan": _digest_of(plan)})
    _write_pruning(folder, record, extra, LIGHT, (TENSORS, ADAPTER))


def write_merged(folder: Path, record: CutRecord, extra: dict[str, Any]) -> None:
    """Write `pruning.json` beside the merged weights that are in `folder`: the plan, and their hash."""
    _write_pruning(folder, record, extra, MERGED, (WEIGHTS,))


def _write_pruning(
    folder: Path, record: CutRecord, extra: dict[str, Any], kind: str, files: tuple[str, ...]
) -> None:
    present = {name: file_sha256(folder / name) for name in files if (folder / name).is_file()}
    value = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "fingerprint": record.fingerprint,
        "beside": sorted(record.beside),
        "plan": record.plan.to_dict(),
        "files": present,
    }
    write_json(folder / PRUNING, value | extra)


def read_record(folder: Path) -> tuple[CutRecord, dict[str, Any], dict[str, Tensor]]:
    """Read what `write_record` wrote: record, the JSON object, further tensors.

    Raises:
        CheckpointError: missing, damaged or truncated file, unknown version, or a bad plan.
    """
    value = _read_pruning(folder, LIGHT, TENSORS)
    tensors, header = read_tensors(folder / TENSORS)
    plan = _plan(folder, value)
    try:
        left, right = under(tensors, "left"), under(tensors, "right")
        record = CutRecord(
            plan,
            str(value["fingerprint"]),
            under(tensors, "gates"),
            {name: (left[name], right[name]) for name in left},
            frozenset(value.get("beside", ())),
            constants=under(tensors, "constants"),
            row_factors=under(tensors, "row_factors"),
            shifts=under(tensors, "shifts"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / PRUNING} lacks {error}; it is damaged.") from error
    if header.get("plan") != _digest_of(value["plan"]):
        raise CheckpointError(
            f"the plan in {folder / PRUNING} is not the one that {TENSORS} was written with: it was changed."
        )
    return record, value, under(tensors, "rest")


def read_merged(folder: Path) -> tuple[CutRecord, dict[str, Any]]:
    """Read what `write_merged` wrote: the record (plan and fingerprint only) and the JSON object.

    Raises:
        CheckpointError: missing, damaged or truncated file, unknown version, a bad plan, or not merged.
    """
    value = _read_pruning(folder, MERGED, WEIGHTS)
    return CutRecord(_plan(folder, value), str(value.get("fingerprint"))), value


def kind_of(folder: Path) -> str | None:
    """`light` or `merged`; None for a folder without `pruning.json`."""
    return str(read_json(folder / PRUNING).get("kind")) if (folder / PRUNING).is_file() else None


def _read_pruning(folder: Path, kind: str, needed: str) -> dict[str, Any]:
    value = read_json(folder / PRUNING)
    if value.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / PRUNING} has version {value.get('format_version')!r}, this lightpeft reads "
            f"version {FORMAT_VERSION}. Install the lightpeft that wrote it "
            f"({value.get('lightpeft_version', 'unknown')})."
        )
    if value.get("kind") != kind:
        raise CheckpointError(
            f"{folder} holds a {value.get('kind')!r} checkpoint, expected {kind!r}: `load` takes light ones, "
            "`load_merged` merged ones."
        )
    _check_files(folder, value.get("files"), needed)
    return value


def _plan(folder: Path, value: dict[str, Any]) -> Plan:
    try:
        return Plan.from_dict(value["plan"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / PRUNING} lacks {error}; it is damaged.") from error
    except PlanError as error:
        raise CheckpointError(f"{folder / PRUNING}: {error}") from error


def _check_files(folder: Path, files: Any, needed: str) -> None:
    if not isinstance(files, dict) or needed not in files:
        raise CheckpointError(f"{folder / PRUNING} does not list its files; it is damaged.")
    for name, digest in files.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though {PRUNING} lists it.")
        if file_sha256(path) != digest:
            raise CheckpointError(
                f"{path} is not the file that {PRUNING} was written with (SHA-256 differs): it is cut off, "
                "damaged or replaced."
            )


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
