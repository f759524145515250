"""What the frozen layers put out for each example: in memory first, then in a file."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor


@dataclass(frozen=True)
class _Place:
    """Where a row lies in the file, and what its bytes are."""

    offset: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    digest: bytes


@dataclass(frozen=True)
class _Stored:
    """A row, in memory or in the file, and the dtype that it came in."""

    at: Tensor | _Place
    dtype: torch.dtype


class RowCache:
    """Tensors by key, on the CPU, up to a number of bytes in memory and in a file.

    The file has no name and goes with the process. A row of it that is not what was written (the disk
    failed, or was full) counts as missing, so it is computed and stored anew.

    Args:
        memory: bytes in memory.
        disk: bytes in the file; none is made before memory is full.
        folder: where the file is made.
        dtype: of what is stored; None stores what comes.
    """

    def __init__(self, memory: int, disk: int, folder: Path, dtype: torch.dtype | None = None) -> None:
        self._memory_left, self._disk_left = memory, disk
        self._folder, self._dtype = folder, dtype
        self._rows: dict[bytes, _Stored] = {}
        self._file = -1
        self._end = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def get(self, key: bytes) -> Tensor | None:
        """The row as it was stored; None where there is none, or not a sound one any more."""
        stored = self._rows.get(key)
        if stored is None:
            return None
        row = self._read(stored.at) if isinstance(stored.at, _Place) else stored.at
        if row is None:
            del self._rows[key]
            return None
        return row.to(stored.dtype)

    def put(self, key: bytes, row: Tensor) -> None:
        """Keep a row, if there is room for it."""
        if key in self:
            return
        own = row.to(device="cpu", dtype=self._dtype or row.dtype, copy=True).contiguous()
        if own.nbytes <= self._memory_left:
            self._memory_left -= own.nbytes
            self._rows[key] = _Stored(own, row.dtype)
        elif own.nbytes <= self._disk_left:
            place = self._write(own)
            if place is not None:
                self._rows[key] = _Stored(place, row.dtype)

    def close(self) -> None:
        """Give memory and file back."""
        self._rows.clear()
        self._memory_left = self._disk_left = 0
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, row: Tensor) -> _Place | None:
        data = row.reshape(-1).view(torch.uint8).numpy().tobytes()
        start = self._end
        try:
            if self._file < 0:
                self._file = _nameless_file(self._folder)
            written = os.pwrite(self._file, data, start)
        except OSError:
            self._disk_left = 0  # the disk is full; what is stored so far stays
            return None
        self._end += written
        self._disk_left -= len(data)
        if written < len(data):
            return None
        return _Place(start, len(data), tuple(row.shape), row.dtype, xxhash.xxh3_128_digest(data))

    def _read(self, place: _Place) -> Tensor | None:
        try:
            data = os.pread(self._file, place.size, place.offset)
        except OSError:
            return None
        if xxhash.xxh3_128_digest(data) != place.digest:
            return None
        return torch.frombuffer(bytearray(data), dtype=place.dtype).view(place.shape)


def _nameless_file(folder: Path) -> int:
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())
