"""Numbers for people: three digits and a unit. Minus is `−`, and a missing number is `–`."""

import math
from collections.abc import Sequence

MISSING = "–"
LABELS = {
    "run_seconds": "whole run",
    "train_step_seconds": "training step",
    "estimation_step_seconds": "estimation step",
    "inference_seconds": "inference/sample",
    "peak_memory_bytes": "peak memory",
    "encoder_parameters": "encoder parameters",
    "peft_parameters": "PEFT parameters",
    "checkpoint_bytes": "checkpoint",
}
"""The numbers of a method beside its metric, and what they are called; of all, less is better."""

_LOWER_IS_BETTER = ("loss", "mse", "mae", "perplexity")


def count(value: float, deviation: float | None = None) -> str:
    """`7103232` as `7.10 M`."""
    return _scaled(value, ("", "k", "M", "G", "T"), deviation)


def size(value: float, deviation: float | None = None) -> str:
    """Bytes: `41000000` as `41.0 MB`."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"), deviation)


def seconds(value: float, deviation: float | None = None) -> str:
    """`0.0123` as `12.3 ms`; with a deviation `12.3 ± 0.4 ms`."""
    return _scaled(value * 1e6, ("µs", "ms", "s"), None if deviation is None else deviation * 1e6)


def times(value: float | None) -> str:
    """A ratio: `0.5512` as `0.55×`."""
    return MISSING if value is None else f"{value:.2f}×"


def percent(share: float) -> str:
    """`0.652` as `65 %`."""
    return f"{100 * share:.0f} %"


def metric(value: float, deviation: float | None = None) -> str:
    """Three decimals for a share, fewer for large numbers; with a deviation `0.912 ± 0.003`."""
    digits = 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def lower_is_better(name: str) -> bool:
    """Whether a metric is a loss or an error, not a share of what is right."""
    return any(word in name.lower() for word in _LOWER_IS_BETTER)


def difference(name: str, after: float, before: float, deviation: float | None = None) -> str:
    """`after − before`: in points (hundredths) for metrics that are shares, such as accuracy.

    Args:
        deviation: of the difference, over seeds.
    """
    is_share = max(abs(after), abs(before)) <= 1
    if is_share and not lower_is_better(name):
        spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
        return f"{signed(100 * (after - before), 1)}{spread} points"
    return signed(after - before, 3) + ("" if deviation is None else f" ± {deviation:.3f}")


def seed_names(seeds: Sequence[int]) -> str:
    """`seed 1`, `seeds 1, 2`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def signed(value: float, digits: int) -> str:
    """With its sign, also `+`; a zero has none."""
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return ("−" if value < 0 else "+") + text


def _scaled(value: float, units: tuple[str, ...], deviation: float | None) -> str:
    power = 0
    while power < len(units) - 1 and round(value) >= 1000:
        value /= 1000
        power += 1
    whole = float(value).is_integer() and power == 0
    digits = 0 if whole or value <= 0 else min(2, max(0, 2 - math.floor(math.log10(value))))
    spread = "" if deviation is None else f" ± {deviation / 1000**power:.{digits}f}"
    return f"{value:.{digits}f}{spread} {units[power]}".rstrip()
