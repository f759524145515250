"""One run in a folder at a time: a lock that the system gives up when its owner dies."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from lightpeft.errors import InUseError, OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lightpeft.lock"
_PAUSE = 0.05
"""Seconds between two looks at a lock."""

_held: dict[Path, int] = {}
"""This process's own locks, by folder."""


@contextmanager
def locked(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Have `folder`, made if need be, for this process alone; inside of a lock of its own it has it already.

    Args:
        wait: seconds to wait for another run to leave it.

    Raises:
        InUseError: another run has it.
        OutputError: it cannot be made.
    """
    place, made = Path(os.path.realpath(folder)), not folder.exists()
    if place in _held:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(folder / LOCK)
        last = time.monotonic() + wait
        while handle is None and time.monotonic() < last:
            time.sleep(_PAUSE)
            handle = _take(folder / LOCK)
    except OSError as error:
        raise OutputError(f"{folder} cannot be used as a run's folder: {error}") from error
    if handle is None:
        raise InUseError(
            f"another run ({_owner(folder / LOCK)}) is writing into {folder}; wait for it, or choose another "
            "folder."
        )
    _held[place] = handle
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        _held.pop(place, None)
        os.close(handle)
        if made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def _take(path: Path) -> int | None:
    """An open, locked file that still has its name; None if somebody else has it."""
    if fcntl is None:
        return _take_without_system(path)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
            _sign(handle)
            return handle
        os.close(handle)  # its last owner took the name away between the two lines


def _take_without_system(path: Path) -> int | None:
    """Where files cannot be locked: that the file exists is the lock, its text the owner, who may be dead."""
    owner = _owner(path).removeprefix("process ")
    if owner.isdigit() and not psutil.pid_exists(int(owner)):
        path.unlink(missing_ok=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    _sign(handle)
    return handle


def _sign(handle: int) -> None:
    with suppress(OSError):  # the owner's number is for the message only, or the disk is full
        os.truncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())


def _owner(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    return f"process {text}" if text.isdigit() else "of another process"


def _forget() -> None:
    """In a forked child, as of a data loader: the lock is the parent's and ends with it."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
