"""Which names are the hub's."""

import re
from pathlib import Path

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CACHED = re.compile(r"models--(?P<name>.+)")


def can_be_hub_name(name: str) -> bool:
    """Whether a repository can have this name."""
    return _NAME.fullmatch(name) is not None


def is_hub_name(name: str) -> bool:
    """Whether it can be a repository, and is no folder here."""
    return can_be_hub_name(name) and not Path(name).exists()


def hub_name(name: str) -> tuple[str | None, str | None]:
    """The hub's name of a base, None for other folders; and the commit, of a folder of the hub's cache."""
    if is_hub_name(name):
        return name, None
    path = Path(name)
    cached = _CACHED.fullmatch(path.parent.parent.name) if path.parent.name == "snapshots" else None
    return (None, None) if cached is None else (cached["name"].replace("--", "/"), path.name)
