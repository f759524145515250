"""Checks of the values in `result.json`, and dataclasses from its objects."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from lightpeft.errors import CheckpointError, ConfigError

T = TypeVar("T")


def required(kind: type[Any]) -> list[str]:
    """Fields of a dataclass without a default."""
    rest = optional(kind)
    return [one.name for one in dataclasses.fields(kind) if one.name not in rest]


def optional(kind: type[Any]) -> list[str]:
    """Fields of a dataclass with a default."""
    none = dataclasses.MISSING
    return [
        one.name
        for one in dataclasses.fields(kind)
        if one.default is not none or one.default_factory is not none
    ]


def take(value: Any, where: str, *names: str, optional_keys: Sequence[str] = ()) -> dict[str, Any]:
    """A copy of `value`, which has the keys `names`, perhaps some `optional_keys`, and no others.

    Raises:
        CheckpointError: it is no object, or has other keys.
    """
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is a {type(value).__name__}, expected an object.")
    missing = [name for name in names if name not in value]
    unknown = [name for name in value if name not in (*names, *optional_keys)]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has the unknown keys {', '.join(map(repr, unknown))}"] if unknown else []
        raise CheckpointError(f"{where} {' and '.join(parts)}.")
    return dict(value)


def build(kind: type[T], parts: dict[str, Any], where: str) -> T:
    """The dataclass of these fields.

    Raises:
        CheckpointError: it refuses them.
    """
    try:
        return kind(**parts)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def plain_json(name: str, value: Any) -> dict[str, Any]:
    """A copy of `value` as it comes back from JSON."""
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is a {type(value).__name__}; give a dict.")
    try:
        copy: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} holds something that JSON cannot: {error}.") from error
    return copy


def check_number(name: str, value: Any, least: float = -math.inf) -> None:
    """Refuse what is no finite number of at least `least`, with a ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; give a finite number.")
    if value < least:
        raise ConfigError(f"{name} is {value!r}; give at least {least:g}.")


def check_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 0, with a ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{name} is {value!r}; give a whole number of at least 0.")


def check_text(name: str, value: Any) -> None:
    """Refuse what is no text, or empty, with a ConfigError."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} is {value!r}; give a text.")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse what is none of the allowed, with a ConfigError."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(allowed)}.")
