"""Which checkpoints of a run are whole: a marker, written last, lists every file with its size."""

import re
import shutil
from pathlib import Path

from lightpeft.errors import CheckpointError
from lightpeft.files import read_json, write_json

MARKER = "lightpeft_complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Declare everything in the folder to be written."""
    write_json(checkpoint / MARKER, {"files": _sizes(checkpoint)})


def unmark(checkpoint: Path) -> None:
    """Declare a folder that is about to be written again to be unfinished."""
    (checkpoint / MARKER).unlink(missing_ok=True)


def keep_newest(run: str | Path, limit: int, keep: str | None = None) -> None:
    """Delete the oldest complete checkpoints of a run beyond `limit`, but never `keep`."""
    spared = None if keep is None else Path(keep).resolve()
    found = [path for path in _complete_checkpoints(run) if path.resolve() != spared]
    allowed = max(limit - (spared is not None), 1)
    for checkpoint in found[:-allowed]:
        unmark(checkpoint)
        shutil.rmtree(checkpoint)


def is_complete(checkpoint: Path) -> bool:
    """Whether the folder was marked complete and still has every file at its size."""
    try:
        files = read_json(checkpoint / MARKER).get("files")
    except CheckpointError:
        return False
    return isinstance(files, dict) and files.items() <= _sizes(checkpoint).items()


def last_complete_checkpoint(run: str | Path) -> Path | None:
    """The newest complete `checkpoint-N` of a run, if any."""
    found = _complete_checkpoints(run)
    return found[-1] if found else None


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


def _complete_checkpoints(run: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folder = Path(run)
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and is_complete(path)
    ]
    return [path for _, path in sorted(found)]


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MARKER
    }
