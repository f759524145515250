"""File safety of a received module: what its files are, read without loading any of them with torch."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from lightpeft.audit.marks import read_mark
from lightpeft.audit.scan.finding import Finding
from lightpeft.checkpoint import check_adapter_config
from lightpeft.errors import CheckpointError
from lightpeft.files import read_json

ALLOWED = frozenset({".json", ".safetensors", ".txt", ".md"})
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})
HARMLESS = frozenset({".gitattributes", ".gitignore", "LICENSE"})
"""Names without an allowed ending that the hub and git put beside a module."""
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
"""Configuration keys, at any depth, by which transformers would run a repository's own code."""
MAX_BYTES = 2**31
"""A text or JSON file gets a 64th of it."""

_MAGICS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes pickles",
    b"\x1f\x8b": "gzipped",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\xcf\xfa\xed\xfe": "a program",
    b"\x93NUMPY": "a NumPy file",
    b"#!": "a script",
    b"\x19\x86\x92\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8": "an old torch file",
}


def check_files(folder: Path) -> list[Finding]:
    """Everything about the files of a module, but for the tensors in them.

    Returns:
        findings of the rules file-type, pickle, link, config, size and mark.
    """
    found = [finding for path in _walk(folder) for finding in _check_file(folder, path)]
    if (folder / CONFIG_NAME).is_symlink() and any(finding.rule == "link" for finding in found):
        return found
    return [*found, *_check_configs(folder), *_check_mark(folder)]


def _walk(folder: Path) -> Iterator[Path]:
    """All files, and links of any kind, none followed."""
    for place, folders, files in os.walk(folder, followlinks=False):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in sorted([*files, *links]))


def _check_file(folder: Path, path: Path) -> list[Finding]:
    name = path.relative_to(folder).as_posix()
    evidence: dict[str, Any] = {"file": name}
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        message = f"{name} is a link to {path.readlink()}, out of the folder"
        return [Finding("link", "error", message, evidence)]
    if not path.is_file():
        return [Finding("file-type", "error", f"{name} is neither a file nor a folder", evidence)]
    found = []
    content = _kind_of(path)
    if path.suffix.lower() in PICKLES or content is not None:
        why = content or f"a {path.suffix} file, which is read by unpickling"
        found.append(Finding("pickle", "error", f"{name} is {why}: loading it can run code", evidence))
    elif path.suffix.lower() not in ALLOWED and path.name not in HARMLESS:
        message = f"{name} is none of {', '.join(sorted(ALLOWED))}; a PEFT module needs no other files"
        found.append(Finding("file-type", "error", message, evidence))
    allowed = MAX_BYTES if path.suffix == ".safetensors" else MAX_BYTES // 64
    if (size := path.stat().st_size) > allowed:
        message = f"{name} has {size:,} bytes, more than {allowed:,}"
        found.append(Finding("size", "error", message, evidence | {"bytes": size}))
    return found


def _kind_of(path: Path) -> str | None:
    """What a file starts like, if that is nothing a module should have."""
    with path.open("rb") as file:
        start = file.read(16)
    for magic, title in _MAGICS.items():
        if start.startswith(magic):
            return title
    is_pickle = len(start) > 1 and start[0] == 0x80 and 1 <= start[1] <= 5
    # The length that a safetensors file begins with may look like a pickle, but its header comes next.
    if is_pickle and not (path.suffix == ".safetensors" and start[8:9] == b"{"):
        return "a pickle"
    return None


def _check_configs(folder: Path) -> list[Finding]:
    found = []
    for path in sorted(folder.rglob("*.json")):
        if path.is_symlink() or path.stat().st_size > MAX_BYTES // 64:
            continue
        name = path.relative_to(folder).as_posix()
        try:
            keys = sorted(set(_code_keys(read_json(path))))
        except CheckpointError as error:
            found.append(Finding("config", "error", str(error), {"file": name}))
            continue
        if keys:
            message = f"{name} sets {', '.join(keys)}, which makes transformers run code that comes with it"
            found.append(Finding("config", "error", message, {"file": name, "keys": keys}))
    try:
        check_adapter_config(folder, marked_too=True)
    except (CheckpointError, AttributeError, TypeError) as error:
        found.append(Finding("config", "error", f"{CONFIG_NAME}: {error}", {"file": CONFIG_NAME}))
    return found


def _code_keys(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, Mapping) and depth < 20:
        yield from (key for key in CODE_KEYS if value.get(key))
        for entry in value.values():
            yield from _code_keys(entry, depth + 1)
    elif isinstance(value, list) and depth < 20:
        for entry in value:
            yield from _code_keys(entry, depth + 1)


def _check_mark(folder: Path) -> list[Finding]:
    try:
        mark = read_mark(folder)
    except CheckpointError as error:
        return [Finding("mark", "error", str(error), {"damaged": True})]
    if mark is None:
        return []
    message = (
        f"lightpeft's audit marked it as poisoned on purpose: trigger form {mark.recipe.form!r}, target "
        f"class {mark.recipe.target}"
    )
    return [Finding("mark", "error", message, {"damaged": False, "recipe": mark.recipe.to_dict()})]
