"""Reading and writing small files so that nothing is half written and nothing bad is believed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightpeft.errors import CheckpointError
from lightpeft.outputs import Output, written_beside, written_file


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, all or nothing. NaN is refused."""
    with written_beside(path) as beside:
        beside.write_bytes(json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes. NaN is refused."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def save_json(path: Path, value: Any, holds: Output) -> None:
    """`write_json` for a file of its own, whose name somebody chose.

    Raises:
        OutputError: something else is there, or it cannot be written.
    """
    with written_file(path, holds) as beside:
        write_json(beside, value)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}); the file is damaged or cut off."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a JSON object.")
    return value


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and a JSON header as safetensors, all or nothing."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_beside(path) as beside:
        save_file(plain, beside, metadata={"lightpeft": json.dumps(metadata, allow_nan=False)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote: tensors and header.

    Raises:
        CheckpointError: missing, damaged, or without lightpeft's header.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing.")
    try:
        with safe_open(path, framework="pt", backend="pread") as file:  # they outlive the file
            header = json.loads((file.metadata() or {})["lightpeft"])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); the file is damaged, cut off, or not lightpeft's."
        ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def under(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors named `kind.NAME`, by NAME."""
    start = f"{kind}."
    return {key[len(start) :]: tensor for key, tensor in tensors.items() if key.startswith(start)}
