"""What files are by what is in them. Nothing is unpacked, unpickled or run; little of a file is read."""

import io
import itertools
import pickletools
import re
import tarfile
import zipfile
from pathlib import Path

_MAGICS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes pickles",
    b"\x1f\x8b": "gzipped",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy file",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\xcf\xfa\xed\xfe": "a program",
    b"\xce\xfa\xed\xfe": "a program",
    b"\xca\xfe\xba\xbe": "a program",
    b"\x00asm": "a program",
    b"#!": "a script",
    b"\x19\x86\x92\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8": "an old torch file",
}
_HEAD = 1024
_PICKLE_BYTES = 2**20
"""Of a text that is read as a pickle would be."""
_NAMED = {"GLOBAL", "INST"}
_CALLS = {"REDUCE", "OBJ", "INST", "NEWOBJ"}
_NAME = re.compile(r"[A-Za-z_][\w.]* [A-Za-z_][\w.]*")


def kind_of(path: Path) -> str | None:
    """What a file is, if that is a pickle, an archive or a program; None for others.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_HEAD)
    is_tensors = path.suffix == ".safetensors" and start[8:9] == b"{"
    # The length that a safetensors file begins with may look like anything, but its header comes next.
    if is_tensors:
        return None
    for magic, title in _MAGICS.items():
        if start.startswith(magic):
            return title
    if start[:1] == b"\x80" and start[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    if start[257:262] == b"ustar" or _is_old_tar(path, start):
        return "a tar archive"
    if zipfile.is_zipfile(path):
        return "a zip archive behind something else"
    return "a pickle" if _is_plain_pickle(path, start) else None


def _is_old_tar(path: Path, start: bytes) -> bool:
    """Archives from before there was a magic have a name, and digits with NULs or blanks in fixed places."""
    if len(start) < 512 or not re.fullmatch(rb"[0-7 ]+[\0 ]*", start[148:156]):
        return False
    return tarfile.is_tarfile(path)


def _is_plain_pickle(path: Path, start: bytes) -> bool:
    """Protocols 0 and 1 have no magic: they are read without being run, to the end or to the first call."""
    if start[:1] not in _OPCODES:
        return False
    with path.open("rb") as file:
        data = file.read(_PICKLE_BYTES)
    return _calls(data) or _is_whole(data)


_OPCODES = {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}


def _calls(data: bytes) -> bool:
    """Whether names are looked up and called: it happens before a reader sees that the rest is no pickle."""
    names = makes = False
    try:
        for opcode, argument, _ in itertools.islice(pickletools.genops(data), 10_000):
            if opcode.name in _NAMED and not _NAME.fullmatch(str(argument)):
                return False
            names |= opcode.name in _NAMED
            makes |= opcode.name in {"MARK", "EMPTY_TUPLE"} or opcode.name.startswith("TUPLE")
            if names and makes and opcode.name in _CALLS:
                return True
    except Exception:
        return False
    return False


def _is_whole(data: bytes) -> bool:
    """Whether it is a sound pickle to its end, of more than one atom."""
    if not data.rstrip().endswith(b".") or len(data) < 6:
        return False
    try:
        pickletools.dis(data, io.StringIO())
        *_, (_, _, end) = pickletools.genops(data)
    except Exception:
        return False
    return end is not None and not data[end + 1 :].strip()
