"""What lightpeft's own files in a checkpoint hold: `pruning.json` and `light.safetensors`."""

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils.hub import CHAT_TEMPLATE_DIR

from lightpeft.anatomy import LayerForm
from lightpeft.checkpoint.poison import refuse_marked_folder
from lightpeft.errors import CheckpointError, PlanError
from lightpeft.files import file_sha256, read_json, read_tensors, under, write_json, write_tensors
from lightpeft.plan import Plan
from lightpeft.surgery import CutRecord

FORMAT_VERSION = 3
PRUNING = "pruning.json"
TENSORS = "light.safetensors"
ADAPTER = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
LIGHT, MERGED = "light", "merged"

CARD = "README.md"
CUT_FILES = (TENSORS, CARD, PRUNING)
"""What a light checkpoint has beside PEFT's files, in the order in which it is written."""

NOTE = "made_for_a_cut_base_use_lightpeft.load"
"""A key in `adapter_config.json` that says to stock readers what the adapter is for."""
_SEAL = "digest"
_FILES = {TENSORS, ADAPTER, WEIGHTS, CARD, "adapter_config.json", "config.json", "generation_config.json"}
_TOKENIZER_FILES = (
    *("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "chat_template"),
    *("preprocessor_config", "processor_config"),
)
_TOKENIZER_ENDINGS = (".model", ".spm", ".jinja")
READ = (
    PRUNING,
    *sorted(_FILES - {CARD}),
    *(f"{start}*" for start in _TOKENIZER_FILES),
    *(f"*{ending}" for ending in _TOKENIZER_ENDINGS),
)
"""Patterns of the files of a checkpoint that somebody reads by lightpeft or transformers."""
_VECTORS = ("gates", "constants", "row_factors", "shifts")


def write_record(folder: Path, record: CutRecord, extra: dict[str, Any], own: dict[str, Tensor]) -> None:
    """Write the two files into `folder`; `pruning.json` last, naming the digests of all files there.

    Args:
        extra: further JSON values (base, metrics, versions).
        own: further tensors to restore on load, by name.
    """
    tensors = {f"rest.{name}": tensor for name, tensor in own.items()}
    for kind in _VECTORS:
        tensors |= {f"{kind}.{name}": tensor for name, tensor in getattr(record, kind).items()}
    for name, (left, right) in record.pairs.items():
        tensors |= {f"left.{name}": left, f"right.{name}": right}
    plan = record.plan.to_dict()
    write_tensors(folder / TENSORS, tensors, {"format_version": FORMAT_VERSION, "plan": _digest_of(plan)})
    _write_pruning(folder, record, extra, LIGHT)


def write_merged(folder: Path, record: CutRecord, extra: dict[str, Any]) -> None:
    """Write `pruning.json` beside the merged weights that are in `folder`: the plan, and digests."""
    _write_pruning(folder, record, extra, MERGED)


def _write_pruning(folder: Path, record: CutRecord, extra: dict[str, Any], kind: str) -> None:
    value = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "weights": record.base,
        "beside": sorted(record.beside),
        "first_token": record.first_token,
        "skipped": {
            name: None if form.rest is None else list(form.rest) for name, form in record.skipped.items()
        },
        "plan": record.plan.to_dict(),
        "files": _file_digests(folder),
    }
    _write_sealed(folder, value | extra)


def bind_files(folder: Path) -> None:
    """Take into `pruning.json` what was written into `folder` after it: a tokenizer, say."""
    value = read_json(folder / PRUNING)
    _write_sealed(folder, value | {"files": _file_digests(folder)})


def _write_sealed(folder: Path, value: dict[str, Any]) -> None:
    write_json(folder / PRUNING, sealed(value))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """What `pruning.json` says, with a digest of itself."""
    rest = {key: one for key, one in value.items() if key != _SEAL}
    return rest | {_SEAL: _digest_of(rest)}


def _file_digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and _belongs(path.name))
    return {path.name: file_sha256(path) for path in files}


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies beside a checkpoint."""
    return (folder / "tokenizer_config.json").is_file()


def files_to_read(folder: Path) -> dict[str, Path]:
    """By their names in `folder`, the files that lightpeft or transformers read of it, without the card."""
    paths = (*folder.iterdir(), *folder.glob(f"{CHAT_TEMPLATE_DIR}/*"))
    files = {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()}
    return {name: path for name, path in files.items() if any(fnmatch(name, pattern) for pattern in READ)}


def _belongs(name: str) -> bool:
    """Whether a file is one of a checkpoint: in a Trainer's folder there are others, which come and go."""
    return name in _FILES or name.startswith(_TOKENIZER_FILES) or name.endswith(_TOKENIZER_ENDINGS)


def read_record(
    folder: Path, *, check_files: bool = True
) -> tuple[CutRecord, dict[str, Any], dict[str, Tensor]]:
    """Read what `write_record` wrote: record, the JSON object, further tensors.

    Args:
        check_files: off, files that were changed since are taken as they are.

    Raises:
        CheckpointError: missing, damaged or truncated file, unknown version, or a bad plan.
    """
    value = _read_pruning(folder, LIGHT, TENSORS, check_files)
    tensors, header = read_tensors(folder / TENSORS)
    plan = _plan(folder, value)
    try:
        left, right = under(tensors, "left"), under(tensors, "right")
        record = CutRecord(
            plan,
            _weights(value, folder),
            under(tensors, "gates"),
            {name: (left[name], right[name]) for name in left},
            frozenset(value.get("beside", ())),
            constants=under(tensors, "constants"),
            row_factors=under(tensors, "row_factors"),
            skipped=_forms(folder, value),
            shifts=under(tensors, "shifts"),
            first_token=_first_token(folder, value),
            own=frozenset(under(tensors, "rest")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / PRUNING} lacks {error}; it is damaged.") from error
    if header.get("plan") != _digest_of(value["plan"]):
        raise CheckpointError(
            f"the plan in {folder / PRUNING} is not the one that {TENSORS} was written with: it was changed."
        )
    return record, value, under(tensors, "rest")


def read_merged(folder: Path, *, check_files: bool = True) -> tuple[CutRecord, dict[str, Any]]:
    """Read what `write_merged` wrote: the record (plan and digests only) and the JSON object.

    Raises:
        CheckpointError: missing, damaged or truncated file, unknown version, a bad plan, or not merged.
    """
    value = _read_pruning(folder, MERGED, WEIGHTS, check_files)
    record = CutRecord(
        _plan(folder, value),
        _weights(value, folder),
        skipped=_forms(folder, value),
        first_token=_first_token(folder, value),
    )
    return record, value


def kind_of(folder: Path) -> str | None:
    """`light` or `merged`; None for a folder without `pruning.json`."""
    return str(read_json(folder / PRUNING).get("kind")) if (folder / PRUNING).is_file() else None


def _read_pruning(folder: Path, kind: str, needed: str, check_files: bool) -> dict[str, Any]:
    refuse_marked_folder(folder)
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
    seal = value.pop(_SEAL, None)
    if check_files and seal != _digest_of(value):
        raise CheckpointError(
            f"{folder / PRUNING} was changed after it was written, or is damaged (its digest differs). If it "
            "was changed on purpose, load with check_files=False."
        )
    _check_files(folder, value.get("files"), needed, check_files)
    return value


def _weights(value: dict[str, Any], folder: Path) -> dict[str, str]:
    weights = value.get("weights")
    if not isinstance(weights, dict):
        raise CheckpointError(f"{folder / PRUNING} does not name the weights of its base; it is damaged.")
    return {str(name): str(digest) for name, digest in weights.items()}


def _forms(folder: Path, value: dict[str, Any]) -> dict[str, LayerForm]:
    """How skipped layers return; checkpoints from before there were any do not have the key."""
    forms = value.get("skipped", {})
    if not isinstance(forms, dict) or not all(_is_form(rest) for rest in forms.values()):
        raise CheckpointError(f"{folder / PRUNING} does not say how skipped layers return; it is damaged.")
    return {name: LayerForm(None if rest is None else tuple(rest)) for name, rest in forms.items()}


def _first_token(folder: Path, value: dict[str, Any]) -> bool:
    """Checkpoints from before there was such a thing do not have the key."""
    found = value.get("first_token", False)
    if not isinstance(found, bool):
        raise CheckpointError(f"{folder / PRUNING} has {found!r} for first_token; it is damaged.")
    return found


def _is_form(rest: Any) -> bool:
    """Whether it is what `LayerForm.rest` may be: a position is that of an argument."""
    if rest is None:
        return True
    return isinstance(rest, list) and all(
        one is None or isinstance(one, str) or (type(one) is int and one >= 0) for one in rest
    )


def _plan(folder: Path, value: dict[str, Any]) -> Plan:
    try:
        return Plan.from_dict(value["plan"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / PRUNING} lacks {error}; it is damaged.") from error
    except PlanError as error:
        raise CheckpointError(f"{folder / PRUNING}: {error}") from error


def _check_files(folder: Path, files: Any, needed: str, check_files: bool) -> None:
    if not isinstance(files, dict) or needed not in files:
        raise CheckpointError(f"{folder / PRUNING} does not list its files; it is damaged.")
    for name, digest in files.items():
        path = folder / Path(name).name
        if name == CARD:  # the hub and its users edit cards
            continue
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though {PRUNING} lists it.")
        if check_files and file_sha256(path) != digest:
            raise CheckpointError(
                f"{path} is not the file that {PRUNING} was written with (SHA-256 differs): it is cut off, "
                "damaged or replaced. If it was changed on purpose, load with check_files=False."
            )


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
