"""Which checkpoints of a run are whole, and of which run: a marker, written last, lists every file."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightpeft.errors import CheckpointError, OutputError
from lightpeft.files import read_json, write_json

MARKER = "lightpeft_complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class RunMark:
    """Of which run a checkpoint is."""

    id: str
    """Made anew for each run, kept when one is resumed."""
    settings: Mapping[str, Any]
    """What decides the run's outcome, as JSON values."""


def mark_complete(checkpoint: Path, run: RunMark | None = None) -> None:
    """Declare everything in the folder to be written, by this run."""
    value = {"files": _sizes(checkpoint)}
    named = {} if run is None else {"run": run.id, "settings": dict(run.settings)}
    write_json(checkpoint / MARKER, value | named)


def unmark(checkpoint: Path) -> None:
    """Declare a folder that is about to be written to be unfinished."""
    write_json(checkpoint / MARKER, {"files": None})


def keep_newest(run: str | Path, limit: int, keep: str | None = None, run_id: str | None = None) -> None:
    """Delete the oldest complete checkpoints of a run beyond `limit`, but never `keep`.

    Args:
        run_id: leave alone what another run wrote.
    """
    spared = None if keep is None else Path(keep).resolve()
    found = [
        path
        for path in _complete_checkpoints(run)
        if path.resolve() != spared and (run_id is None or _marked(path).get("run") == run_id)
    ]
    allowed = max(limit - (spared is not None), 1)
    for checkpoint in found[:-allowed]:
        _delete(checkpoint)


def is_complete(checkpoint: Path) -> bool:
    """Whether the folder was marked complete and still has every file at its size."""
    files = _marked(checkpoint).get("files")
    return isinstance(files, dict) and files.items() <= _sizes(checkpoint).items()


def last_complete_checkpoint(run: str | Path, settings: Mapping[str, Any] | None = None) -> Path | None:
    """The newest complete `checkpoint-N` of a run, if any.

    Args:
        settings: pass over checkpoints of runs that had others.
    """
    found = _complete_checkpoints(run)
    if settings is not None:
        found = [path for path in found if (mark := run_of(path)) is not None and mark.settings == settings]
    return found[-1] if found else None


def run_of(checkpoint: Path) -> RunMark | None:
    """Of which run a checkpoint is, if it says so."""
    value = _marked(checkpoint)
    if not isinstance(value.get("settings"), dict):
        return None
    return RunMark(str(value.get("run")), value["settings"])


def require_complete(checkpoint: Path) -> None:
    """Refuse a checkpoint that was not finished.

    Raises:
        CheckpointError: no marker, or a file that is missing or cut off.
    """
    if not is_complete(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is not a complete checkpoint of a light run (the run was stopped while writing "
            "it, or a file is missing or cut off). Resume from an earlier one: "
            f"{last_complete_checkpoint(checkpoint.parent) or 'there is none'}."
        )


def require_unused(run: str | Path, resume: str, *, after: int = 0, run_id: str | None = None) -> None:
    """Refuse to train where the checkpoints of another run would be written over; clear unfinished ones away.

    Args:
        resume: how the user goes on with an earlier run.
        after: of a run that goes on, the step it goes on from.
        run_id: of a run that goes on, its own.

    Raises:
        OutputError: naming the checkpoints.
    """
    in_the_way = []
    for step, checkpoint in _checkpoints(run):
        if discard_unfinished(checkpoint):
            continue
        if run_id is None or (
            step > after and is_complete(checkpoint) and _marked(checkpoint).get("run") != run_id
        ):
            in_the_way.append(checkpoint.name)
    if in_the_way:
        raise OutputError(
            f"{run} holds checkpoints of an earlier run ({', '.join(in_the_way[:3])}), which this one would "
            f"write over. {resume}, or choose another folder, or move them away."
        )


def discard_unfinished(checkpoint: Path) -> bool:
    """Delete a checkpoint that was not finished; whether it was one."""
    unfinished = _is_unfinished(checkpoint)
    if unfinished:
        shutil.rmtree(checkpoint)
    return unfinished


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str:
    """Where two sets of nested settings differ, in words."""
    parts = []
    for key in wanted:
        old, new = found.get(key), wanted[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            parts.append(differences(old, new, f"{prefix}{key}."))
        elif old != new:
            parts.append(f"{prefix}{key} {old!r} instead of {new!r}")
    return ", ".join(part for part in parts if part)


def _checkpoints(run: str | Path) -> list[tuple[int, Path]]:
    """All `checkpoint-N` of a folder, by step."""
    folder = Path(run)
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(match[1]), path) for path in paths if (match := _NAME.fullmatch(path.name)))


def _complete_checkpoints(run: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [path for _, path in _checkpoints(run) if is_complete(path)]


def _marked(checkpoint: Path) -> dict[str, Any]:
    try:
        return read_json(checkpoint / MARKER)
    except CheckpointError:
        return {}


def _is_unfinished(checkpoint: Path) -> bool:
    """Whether a light run began to write it and was stopped; a folder without a file counts, too."""
    marked = _marked(checkpoint)
    return ("files" in marked and marked["files"] is None) or (
        checkpoint.is_dir() and not [name for name in _sizes(checkpoint) if not name.startswith(".")]
    )


def _delete(checkpoint: Path) -> None:
    """Delete what the marker lists; what somebody else put there stays."""
    files = _marked(checkpoint)["files"]
    unmark(checkpoint)
    for name in files:
        (checkpoint / name).unlink(missing_ok=True)
    if all(name.startswith(".") for name in _sizes(checkpoint)):
        shutil.rmtree(checkpoint)
    else:
        (checkpoint / MARKER).unlink()


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MARKER
    }
