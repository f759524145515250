"""Results of earlier versions, which did not have every option of this one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lightpeft.checkpoint import differences
from lightpeft.config import LightConfig
from lightpeft.run_config import LoraOptions, PeftOptions, TrainingConfig

_DEFAULTS: dict[str, Any] = {
    "light": LightConfig().to_dict(),
    "training": dataclasses.asdict(TrainingConfig()),
    "peft": dataclasses.asdict(PeftOptions()),
    "lora": dataclasses.asdict(LoraOptions()),
}
"""Of the groups of options that a record has, by the groups' names."""

_NONE = object()


def other_settings(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Where a result's record differs from the one that is wanted now, in words; None where it does not.

    The words are empty where it only has more.
    """
    completed = as_recorded_now(found, wanted)
    return None if completed == wanted else differences(completed, wanted)


def as_recorded_now(
    found: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A result's record with the options that came after it.

    An option that the record lacks did not exist, and all was as its default now has it; where the record
    wanted now has another value, the two are of different settings, and the option stays missing.

    Args:
        found: the record of the result.
        wanted: what this version records.
        defaults: of the options at this depth; none where it holds no options.
    """
    completed = dict(found)
    for key, value in wanted.items():
        default = _DEFAULTS.get(key, _NONE) if defaults is None else defaults.get(key, _NONE)
        if key not in found:
            if defaults is not None and value == default:
                completed[key] = value
        elif isinstance(value, Mapping) and isinstance(found[key], Mapping):
            below = default if isinstance(default, Mapping) else None
            completed[key] = as_recorded_now(found[key], value, below)
    return completed
