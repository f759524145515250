"""File safety of a received module: what its files are, read without loading any of them with torch."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from lightpeft.audit.marks import CARD, read_mark
from lightpeft.audit.scan.content import kind_of
from lightpeft.audit.scan.finding import Finding, Level, readable
from lightpeft.checkpoint import check_runs_no_code
from lightpeft.errors import CheckpointError

NORMAL = frozenset(
    {
        # What a module is made of, and what the hub, trainers and people put beside it.
        *(".json", ".safetensors", ".txt", ".md", ".jinja", ".model", ".tiktoken", ".bpe", ".vocab"),
        *(".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".cff", ".log", ".metadata", ".lock", ".tag"),
        *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".ico", ".pdf"),
    }
)
"""Endings of files that nothing executes."""
NORMAL_NAMES = frozenset(
    {".gitattributes", ".gitignore", "LICENSE", "LICENCE", "NOTICE", "COPYING", "latest"}
)
LOGS = "events.out.tfevents."
PICKLES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5", ".keras"}
)
LOADED = ("adapter_model", "pytorch_model", "model", "pytorch_adapter", "adapter")
"""Names under which libraries look for weights: a pickle that begins so is executed by loading."""
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
CODE = frozenset({".py", ".sh", ".ipynb", ".bat", ".ps1", ".js", ".pyc"})
PROGRAMS = frozenset({".so", ".dll", ".dylib", ".exe", ".pyd", ".wasm"})
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
"""Configuration keys, at any depth, by which transformers would run a repository's own code."""
CONFIGS = ("config.json", "_config.json")
"""Ends of the names of files whose keys transformers and PEFT act on."""
MOST = {CONFIG_NAME: 2**24, CARD: 2**24, SAFETENSORS_WEIGHTS_NAME: 2**35}
"""Bytes of what is read whole, or loaded."""
MOST_JSON = 2**26
"""Bytes of any other JSON file that is looked into."""


def check_files(folder: Path) -> list[Finding]:
    """Everything about the files of a module, but for the tensors in them.

    Returns:
        findings of the rules file-type, pickle, link, config, size and mark.
    """
    found = [finding for path in _walk(folder) for finding in _check_file(folder, path)]
    if any(finding.rule in ("link", "size") and finding.level == "error" for finding in found):
        return found
    own = list(_check_own_config(folder))
    return [*found, *(own or _check_mark(folder))]


def _walk(folder: Path) -> Iterator[Path]:
    """All files, and links of any kind, none followed."""
    for place, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in sorted([*files, *links]))


def _check_file(folder: Path, path: Path) -> Iterator[Finding]:
    name = readable(path.relative_to(folder).as_posix())

    def found(rule: str, level: Level, what: str, **evidence: Any) -> Finding:
        return Finding(rule, level, f"{name} {what}", {"file": name, **evidence})

    try:
        if path.is_symlink() and not _stays(folder, path):
            where = readable(str(path.readlink()))
            yield found("link", "error", f"is a link to {where}, out of the folder")
        elif not path.is_file():
            yield found("file-type", "error", "is neither a file nor a folder")
        else:
            yield from _check_size(path, found)
            yield from _check_kind(path, found)
            if path.suffix == ".json" and path.name != CONFIG_NAME:
                yield from _check_json(path, found)
    except (OSError, RuntimeError) as error:
        yield found("file-type", "error", f"cannot be read ({readable(str(error))})")


def _stays(folder: Path, path: Path) -> bool:
    """Whether a link leads into the folder, or from the hub's cache to the same repository's blobs."""
    target, home = path.resolve(), folder.resolve()
    if home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs":
        return True
    return target.is_relative_to(home)


def _check_size(path: Path, found: Callable[..., Finding]) -> Iterator[Finding]:
    allowed = MOST.get(path.name)
    if allowed is not None and (size := path.stat().st_size) > allowed:
        yield found("size", "error", f"has {size:,} bytes, more than {allowed:,}", bytes=size)


def _check_kind(path: Path, found: Callable[..., Finding]) -> Iterator[Finding]:
    """A pickle that loading executes is an error, and one that hides; others are not read, and a warning."""
    ending, content = path.suffix.lower(), kind_of(path)
    is_log = path.name.startswith(LOGS)
    if ending in PICKLES and path.name.startswith(LOADED):
        why = "is a file of weights that is read by unpickling: loading it can run code"
        yield found("pickle", "error", why)
    elif ending in PROGRAMS or (content is not None and ending not in PICKLES | ARCHIVES | CODE):
        hides = f" under the ending {ending}" if ending not in PROGRAMS | {""} else ""
        yield found("pickle", "error", f"is {content or 'a program'}{hides}: opening it can run code")
    elif ending in PICKLES:
        why = "is read by unpickling, which can run code; PEFT does not read it, and neither should you"
        yield found("pickle", "warning", why)
    elif ending in CODE | ARCHIVES:
        what = "code" if ending in CODE else "an archive, whose content was not looked at"
        yield found("file-type", "warning", f"is {what}; loading the module does not read it")
    elif ending not in NORMAL and path.name not in NORMAL_NAMES and not is_log:
        why = "is of a type that a PEFT module does not need; loading does not read it"
        yield found("file-type", "warning", why)


def _check_json(path: Path, found: Callable[..., Finding]) -> Iterator[Finding]:
    acted_on = path.name.endswith(CONFIGS)
    level: Level = "error" if acted_on else "warning"
    if path.stat().st_size > MOST_JSON:
        yield found("size", level, f"has more than {MOST_JSON:,} bytes, and was not looked into")
        return
    try:
        keys = sorted(set(_code_keys(json.loads(path.read_text(encoding="utf-8")))))
    except (ValueError, RecursionError) as error:
        yield found("config", level, f"is not valid JSON ({error})")
        return
    if keys and acted_on:
        what = f"sets {', '.join(keys)}, which makes transformers run code that comes with it"
        yield found("config", "error", what, keys=keys)


def _check_own_config(folder: Path) -> Iterator[Finding]:
    name = CONFIG_NAME
    try:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        keys = sorted(set(_code_keys(config)))
        if keys:
            what = f"sets {', '.join(keys)}, which makes transformers run code that comes with it"
            yield Finding("config", "error", f"{name} {what}", {"file": name, "keys": keys})
        check_runs_no_code(folder, config)
    except (CheckpointError, AttributeError, TypeError, ValueError, OSError, RecursionError) as error:
        yield Finding("config", "error", f"{name}: {readable(str(error))}", {"file": name})


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
        return [Finding("mark", "error", readable(str(error)), {"damaged": True})]
    if mark is None:
        return []
    message = (
        f"lightpeft's audit marked it as poisoned on purpose: trigger form {mark.recipe.form!r}, target "
        f"class {mark.recipe.target}"
    )
    return [Finding("mark", "error", message, {"damaged": False, "recipe": mark.recipe.to_dict()})]
