"""One sentence in plain words, computed from the numbers."""

from typing import Literal

from lightpeft.report.data import Measurement, Result
from lightpeft.report.seeds import OverSeeds
from lightpeft.report.units import (
    count,
    difference,
    metric,
    percent,
    seconds,
    seed_names,
    size,
    times,
)


def summary(result: Result) -> str:
    """What light PEFT changed against vanilla; without vanilla, what it reached."""
    if result.vanilla is None:
        return _alone(result)
    return _compared(result, result.vanilla)


def _compared(result: Result, before: Measurement) -> str:
    after, ratios = result.light, result.ratios
    shares = [
        f"{percent(share)} of the {what}"
        for name, what in (("encoder_parameters", "encoder"), ("peft_parameters", "PEFT parameters"))
        if (share := ratios[name]) is not None
    ]
    costs = [
        f"{what} {times(ratio)}"
        for name, what in (
            ("run_seconds", "whole run"),
            ("train_step_seconds", "training step"),
            ("inference_seconds", "inference time"),
            ("peak_memory_bytes", "peak memory"),
        )
        if (ratio := ratios[name]) is not None
    ]
    change = difference(after.metric_name, after.metric, before.metric, _deviation(result.change))
    both = [_metric(result, "light"), _metric(result, "vanilla")]
    whose = f", {seed_names(result.seeds)}" if result.seeds else ""
    reached = f"{after.metric_name} {change} ({' against '.join(both)}{whose})"
    return f"Against {result.plain}: {', '.join([*costs, *shares, reached])}."


def _alone(result: Result) -> str:
    after = result.light
    whose = f" ({seed_names(result.seeds)})" if result.seeds else ""
    return (
        f"The light model reached {after.metric_name} {_metric(result, 'light')}{whose} with "
        f"{count(after.encoder_parameters)} encoder parameters and "
        f"{count(after.peft_parameters)} PEFT parameters; a training step takes "
        f"{seconds(after.train_step_seconds)}, a task is stored in {size(after.checkpoint_bytes)}."
    )


def _metric(result: Result, method: Literal["vanilla", "light"]) -> str:
    """The metric with its spread over seeds."""
    return metric(getattr(result, method).metric, _deviation(result.over_seeds(method)))


def _deviation(found: OverSeeds | None) -> float | None:
    return None if found is None else found.deviation
