"""What may be replaced: an older output of the same kind that lightpeft wrote and nobody changed since.

Of a folder that is written whole, `lightpeft_files.json` in it says what it holds and lists every file with
its SHA-256. Of single files, `.lightpeft_files` beside them does. Whatever is not listed there, or
differs, is somebody's work.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightpeft.errors import OutputError
from lightpeft.outputs.beside import restore_left_behind, written_beside
from lightpeft.outputs.kinds import Output

MANIFEST = "lightpeft_files.json"
RECORD = ".lightpeft_files"
_PROBE_BYTES = 64 * 1024
_SHOWN = 3


def check_file(target: Path, holds: Output) -> None:
    """Refuse a place for a file where something would be lost, or where nothing can be written.

    Args:
        holds: what is to be written there.

    Raises:
        OutputError: a folder, a file that is no older one of the same kind or was changed, an unwritable
            place.
    """
    place = Path(os.path.realpath(target))
    if place.is_dir():
        raise OutputError(f"{target} is a folder; give the name of a file for {holds}.")
    if place.exists() and not place.is_file():
        raise OutputError(f"{target} is not an ordinary file; choose another name.")
    if place.exists() and not is_own(place, holds):
        raise OutputError(
            f"{target} exists and is not {holds} as lightpeft wrote it there (another file, or changed "
            "since). Choose another name, or move it away."
        )
    check_room(place.parent)


def check_folder(target: Path, holds: Output) -> None:
    """Refuse a place for a whole folder where something would be lost, or where nothing can be written.

    Args:
        holds: what is to be written there.

    Raises:
        OutputError: a file, a folder with anything but an older one of the same kind in it, an unwritable
            place.
    """
    restore_left_behind(target)
    place = Path(os.path.realpath(target))
    if place.exists() and not place.is_dir():
        raise OutputError(f"{target} is a file, not a folder; choose another place.")
    if place.is_dir() and os.path.ismount(place):
        raise OutputError(f"{target} is a mount point, which cannot be replaced; give a folder inside it.")
    if in_the_way := _in_the_way(place, holds):
        raise OutputError(
            f"{target} would be replaced by {holds}, but {in_the_way}. Choose another folder, such as a new "
            "one inside it, or move it away."
        )
    check_room(place.parent)


def check_room(folder: Path) -> None:
    """Refuse a folder, there already or not, in which nothing can be written.

    Raises:
        OutputError: a file is in the way, no permission, read-only, or no space.
    """
    existing = Path(os.path.realpath(folder))
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"{existing} is a file, not a folder, so nothing can be written to {folder}.")
    try:
        with tempfile.NamedTemporaryFile(prefix=".lightpeft-", suffix=".part", dir=existing) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        raise OutputError(f"nothing can be written to {folder}: {error.strerror or error}.") from error


@contextmanager
def written_file(target: Path, holds: Output) -> Iterator[Path]:
    """`written_beside` for a file of its own, an older one of which is replaced.

    Raises:
        OutputError: see `check_file`; or it cannot be written.
    """
    check_file(target, holds)
    with written_beside(target) as beside:
        yield beside
        check_file(target, holds)
    note_own(target, holds)


def is_own(target: Path, holds: Output) -> bool:
    """Whether the file that is there is an older `holds` that nobody changed."""
    place = Path(os.path.realpath(target))
    return place.is_file() and _read(place.parent / RECORD).get(place.name) == _entry(holds, place)


def note_own(target: Path, holds: Output) -> None:
    """Remember a file that was just written as lightpeft's own."""
    place = Path(os.path.realpath(target))
    record = place.parent / RECORD
    known = {name: one for name, one in _read(record).items() if (place.parent / name).exists()}
    with suppress(OutputError):  # the file is there; unlisted, it is only not replaced later
        _write(record, known | {place.name: _entry(holds, place)})


@contextmanager
def written_folder(target: Path, holds: Output) -> Iterator[Path]:
    """`written_beside` for a whole folder, an older one of which is replaced; a list of its files is added.

    Raises:
        OutputError: see `check_folder`; or it cannot be written.
    """
    check_folder(target, holds)
    with written_beside(target) as beside:
        yield beside
        names = [name for name in _files(beside) if name != MANIFEST]
        _write(beside / MANIFEST, {name: _entry(holds, beside / name) for name in names})
        check_folder(target, holds)


def _in_the_way(folder: Path, holds: Output) -> str | None:
    """What in `folder` is not of an older `holds`; None if nothing is."""
    listed = _read(folder / MANIFEST)
    names = [name for name in _files(folder) if name != MANIFEST]
    foreign = [name for name in names if name not in listed]
    if foreign:
        return f"holds {_shown(foreign)}, which lightpeft did not write with it"
    changed = [name for name in names if listed[name] != _entry(holds, folder / name)]
    if changed:
        return f"{_shown(changed)} in it is not of {holds}, or was changed since lightpeft wrote it"
    return None


def _files(folder: Path) -> list[str]:
    """All below `folder` that is no folder, relative, with forward slashes; links are not followed."""
    found = []
    for where, folders, files in os.walk(folder):
        links = [name for name in folders if Path(where, name).is_symlink()]
        found += [Path(where, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def _entry(holds: Output, path: Path) -> dict[str, str] | None:
    """What the list says of a file as it is; None of what is no ordinary file or cannot be read."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return {"of": holds, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError:
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {name: entry for name, entry in files.items() if entry} if isinstance(files, dict) else {}


def _write(path: Path, files: Mapping[str, Any]) -> None:
    with written_beside(path) as beside:
        beside.write_text(json.dumps({"files": files}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shown(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
