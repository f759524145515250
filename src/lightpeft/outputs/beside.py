"""Write beside the target, then swap: at every moment the old or the new is under the target's name."""

import ctypes
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from safetensors import SafetensorError

from lightpeft.errors import OutputError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_LEFT = r"\.{name}\.(?:(?P<host>.*)-)?(?P<process>\d+)\.(?P<kind>part|old)"


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to; it takes the place of `target` on success.

    A file replaces a file and a folder a folder, never one the other. Links are followed. What earlier
    processes left half written beside `target` is cleaned up. Who may replace what is `written_file`'s and
    `written_folder`'s business.

    Raises:
        OutputError: it cannot be written, or what is there is of the other kind. The old is as it was.
    """
    place = Path(os.path.realpath(target))
    beside = _hidden(place, "part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _tidy(place)
        _remove(beside)
        try:
            yield beside
            _take_place(beside, place)
        finally:
            _remove(beside)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{target} could not be written: {error}") from error


def restore_left_behind(target: Path) -> bool:
    """Give back its name to a folder that a process was killed over; whether there is a `target` now.

    Only on systems that cannot swap two names in one step is there a moment in which this is needed.
    """
    place = Path(os.path.realpath(target))
    if not place.exists() and place.parent.is_dir():
        _tidy(place)
    return place.exists()


def _take_place(beside: Path, target: Path) -> None:
    if target.exists() and beside.is_dir() != target.is_dir():
        raise OutputError(
            f"{target} is a {_kind(target)}, and a {_kind(beside)} was to be written there; choose another "
            "place."
        )
    if not target.is_dir():
        beside.replace(target)
    elif not _exchange(beside, target):
        old = _hidden(target, "old")
        target.rename(old)
        try:
            beside.rename(target)
        except BaseException:
            old.rename(target)
            raise
        _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{platform.node()}-{os.getpid()}.{kind}")


def _tidy(target: Path) -> None:
    """Deal with what dead processes left beside `target`: an `.old` is restored if nothing took its place."""
    pattern = re.compile(_LEFT.format(name=re.escape(target.name)))
    for path in sorted(target.parent.iterdir(), key=lambda path: path.suffix):
        found = pattern.fullmatch(path.name)
        if found is None or not _is_dead(found["host"], int(found["process"])):
            continue
        with suppress(FileNotFoundError):  # another process tidies up, too
            if found["kind"] == "old" and not target.exists():
                path.rename(target)
            else:
                _remove(path)


def _is_dead(host: str | None, process: int) -> bool:
    """Whether a process of this machine is gone; of another one nobody can tell."""
    return host in (None, platform.node()) and not psutil.pid_exists(process)


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else "file"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
