"""What a light checkpoint's own two files hold: `pruning.json` and `light.safetensors`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from lightpeft.errors import CheckpointError, PlanError
from lightpeft.files import read_json, read_tensors, under, write_json, write_tensors
from lightpeft.plan import Plan
from lightpeft.surgery import CutRecord

FORMAT_VERSION = 2
PRUNING = "pruning.json"
TENSORS = "light.safetensors"
ADAPTER = "adapter_model.safetensors"
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
    files = {name: _digest(folder / name) for name in (TENSORS, ADAPTER) if (folder / name).is_file()}
    write_json(
        folder / PRUNING,
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": record.fingerprint,
            "plan": plan,
            "files": files,
            **extra,
        },
    )


def read_record(folder: Path) -> tuple[CutRecord, dict[str, Any], dict[str, Tensor]]:
    """Read what `write_record` wrote: record, the JSON object, further tensors.

    Raises:
        CheckpointError: missing, damaged or truncated file, unknown version, or a bad plan.
    """
    value = read_json(folder / PRUNING)
    if value.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / PRUNING} has version {value.get('format_version')!r}, this lightpeft reads "
            f"version {FORMAT_VERSION}. Install the lightpeft that wrote it "
            f"({value.get('lightpeft_version', 'unknown')})."
        )
    _check_files(folder, value.get("files"))
    tensors, header = read_tensors(folder / TENSORS)

    try:
        plan = Plan.from_dict(value["plan"])
        left, right = under(tensors, "left"), under(tensors, "right")
        record = CutRecord(
            plan,
            str(value["fingerprint"]),
            under(tensors, "gates"),
            {name: (left[name], right[name]) for name in left},
            constants=under(tensors, "constants"),
            row_factors=under(tensors, "row_factors"),
            shifts=under(tensors, "shifts"),
        )
    except PlanError as error:
        raise CheckpointError(f"{folder / PRUNING}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / PRUNING} lacks {error}; it is damaged.") from error
    if header.get("plan") != _digest_of(value["plan"]):
        raise CheckpointError(
            f"the plan in {folder / PRUNING} is not the one that {TENSORS} was written with: it was changed."
        )
    return record, value, under(tensors, "rest")


def _check_files(folder: Path, files: Any) -> None:
    if not isinstance(files, dict) or TENSORS not in files:
        raise CheckpointError(f"{folder / PRUNING} does not list its files; it is damaged.")
    for name, digest in files.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though {PRUNING} lists it.")
        if _digest(path) != digest:
            raise CheckpointError(
                f"{path} is not the file that {PRUNING} was written with (SHA-256 differs): it is cut off, "
                "damaged or replaced."
            )


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
