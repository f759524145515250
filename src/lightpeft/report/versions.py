"""Older layouts of `result.json`, brought to the present one."""

from typing import Any


def upgraded(value: Any) -> Any:
    """Version 1 as version 2, anything else as it is; whether it is whole is not looked at.

    Version 1 held samples per second, curves of the first seed without its number, no times of whole runs.
    """
    if not isinstance(value, dict) or value.get("format_version") != 1:
        return value
    methods = {name: _per_sample(value[name]) for name in ("vanilla", "light") if name in value}
    lists = {
        name: value[name] for name in ("seeds", "per_seed", "curves") if isinstance(value.get(name), list)
    }
    first = next(iter(lists.get("seeds", [])), None)
    no_times = {"vanilla_seconds": None, "light_seconds": None}
    if "per_seed" in lists:
        lists["per_seed"] = [no_times | row if isinstance(row, dict) else row for row in lists["per_seed"]]
    if "curves" in lists:
        lists["curves"] = [{"seed": first} | one if isinstance(one, dict) else one for one in lists["curves"]]
    return value | methods | lists | {"format_version": 2}


def _per_sample(measured: Any) -> Any:
    if not isinstance(measured, dict) or "inference_samples_per_second" not in measured:
        return measured
    speed = measured["inference_samples_per_second"]
    rest = {name: number for name, number in measured.items() if name != "inference_samples_per_second"}
    return rest | {"inference_seconds": 1 / speed if isinstance(speed, int | float) and speed > 0 else speed}
