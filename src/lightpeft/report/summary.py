"""One sentence in plain words, computed from the numbers."""

from lightpeft.report.data import Measurement, Result
from lightpeft.report.units import count, difference, metric, percent, seconds, size, times


def summary(result: Result) -> str:
    """What light PEFT changed against vanilla; without vanilla, what it reached."""
    if result.vanilla is None:
        return _alone(result.light)
    return _compared(result.plain, result.vanilla, result.light, result.ratios)


def _compared(plain: str, before: Measurement, after: Measurement, ratios: dict[str, float | None]) -> str:
    shares = [
        f"{percent(share)} of the {what}"
        for name, what in (("encoder_parameters", "encoder"), ("peft_parameters", "PEFT parameters"))
        if (share := ratios[name]) is not None
    ]
    costs = [
        f"{what} {times(ratio)}"
        for name, what in (
            ("train_step_seconds", "training step"),
            ("inference_seconds", "inference time"),
            ("peak_memory_bytes", "peak memory"),
        )
        if (ratio := ratios[name]) is not None
    ]
    change = difference(after.metric_name, after.metric, before.metric)
    reached = f"{after.metric_name} {change} ({metric(after.metric)} against {metric(before.metric)})"
    return f"Against {plain}: {', '.join([*shares, *costs, reached])}."


def _alone(after: Measurement) -> str:
    return (
        f"The light model reached {after.metric_name} {metric(after.metric)} with "
        f"{count(after.encoder_parameters)} encoder parameters and "
        f"{count(after.peft_parameters)} PEFT parameters; a training step takes "
        f"{seconds(after.train_step_seconds)}, a task is stored in {size(after.checkpoint_bytes)}."
    )
