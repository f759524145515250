"""Tables for the terminal; their rows, as text, also fill the page."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from lightpeft.plan import Counts, LayerPlan, ModulePlan, Plan
from lightpeft.report.data import Measurement, Result
from lightpeft.report.plan_axes import layer_labels
from lightpeft.report.units import MISSING, count, difference, lower_is_better, metric, seconds, size, times

LIGHT = "light PEFT"
RATIO = "light / plain"


class Row(NamedTuple):
    """One number of a run: what it is, for vanilla, for light, and the comparison."""

    label: str
    plain: str
    light: str
    ratio: str


class PlanRow(NamedTuple):
    """What stays of one layer, each as `kept/of`."""

    layer: str
    heads: str
    neurons: str
    modules: str
    ranks: str


def side_by_side(result: Result) -> Table:
    """Vanilla and light beside each other; without vanilla, light alone."""
    headings = ["", LIGHT] if result.vanilla is None else ["", result.plain, LIGHT, RATIO]
    table = _table(result.title, headings)
    for row in comparison_rows(result):
        cells = [row.label, row.light] if result.vanilla is None else list(row)
        table.add_row(*map(Text, cells))
    return table


def plan_table(plan: Plan) -> Table:
    """Heads, neurons, PEFT modules and ranks that stay, per layer."""
    table = _table("What stays", ["layer", "heads", "neurons", "PEFT modules", "ranks"])
    rows = plan_rows(plan)
    for row in rows[:-1]:
        table.add_row(*map(Text, row))
    table.add_section()
    table.add_row(*map(Text, rows[-1]), style="bold")
    return table


def comparison_rows(result: Result) -> list[Row]:
    """The rows of `side_by_side`, in human units; a missing number is `–`."""
    before, after, ratios = result.vanilla, result.light, result.ratios
    rows = [
        (after.metric_name, "metric", _change(result)),
        ("encoder parameters", "encoder_parameters", times(ratios["encoder_parameters"])),
        ("PEFT parameters", "peft_parameters", times(ratios["peft_parameters"])),
        ("training step", "train_step_seconds", times(ratios["train_step_seconds"])),
        ("estimation step", "estimation_step_seconds", times(_estimation_ratio(result))),
        (
            "inference",
            "inference_samples_per_second",
            times(ratios["inference_samples_per_second"]),
        ),
        ("peak memory", "peak_memory_bytes", times(ratios["peak_memory_bytes"])),
        ("checkpoint", "checkpoint_bytes", times(ratios["checkpoint_bytes"])),
    ]
    return [Row(label, _text(before, of), _text(after, of), ratio) for label, of, ratio in rows]


def plan_rows(plan: Plan) -> list[PlanRow]:
    """The rows of `plan_table`; the last one is the total. Modules outside all layers: `other`."""
    rows = [
        _plan_row(label, [layer], [module for module in plan.modules if module.layer == layer.index])
        for label, layer in zip(layer_labels(plan), plan.layers, strict=True)
    ]
    outside = [module for module in plan.modules if module.layer is None]
    others = [_plan_row("other", [], outside)] if outside else []
    return [*rows, *others, _plan_row("total", plan.layers, plan.modules)]


def _plan_row(name: str, layers: Sequence[LayerPlan], modules: Sequence[ModulePlan]) -> PlanRow:
    counts = Counts.of(layers, modules)
    return PlanRow(name, *(f"{one.kept}/{one.total}" if one.total else MISSING for one in counts))


def _change(result: Result) -> str:
    before, after = result.vanilla, result.light
    if before is None:
        return MISSING
    change = difference(after.metric_name, after.metric, before.metric)
    ratio = result.ratios["metric"]
    if ratio is None or not lower_is_better(after.metric_name):
        return change
    return f"{times(ratio)} ({change})"


def _estimation_ratio(result: Result) -> float | None:
    """An estimation step over a vanilla training step."""
    after = result.light.estimation_step_seconds
    if result.vanilla is None or after is None or not result.vanilla.train_step_seconds:
        return None
    return after / result.vanilla.train_step_seconds


def _text(measured: Measurement | None, name: str) -> str:
    value = None if measured is None else getattr(measured, name)
    if measured is None or value is None:
        return MISSING
    if name == "estimation_step_seconds":
        steps = measured.estimation_steps
        return seconds(value) + ("" if steps is None else f" ({steps} steps)")
    return _FORMATS[name](value)


_FORMATS: dict[str, Callable[[float], str]] = {
    "metric": metric,
    "encoder_parameters": count,
    "peft_parameters": count,
    "train_step_seconds": seconds,
    "inference_samples_per_second": lambda value: f"{count(value)} samples/s",
    "peak_memory_bytes": size,
    "checkpoint_bytes": size,
}


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=Text(title))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=place > 0)
    return table
