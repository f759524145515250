"""Tables for the terminal; their rows, as text, also fill the page."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from lightpeft.plan import Counts, LayerPlan, ModulePlan, Plan
from lightpeft.report.data import Measurement, Result
from lightpeft.report.plan_axes import layer_labels
from lightpeft.report.seeds import OverSeeds, SeedNumber
from lightpeft.report.units import (
    LABELS,
    MISSING,
    count,
    difference,
    lower_is_better,
    metric,
    seconds,
    seed_names,
    size,
    times,
)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for documents."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


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


class SeedRow(NamedTuple):
    """What one seed reached, or the mean of all: metrics and their difference, seconds of the whole runs."""

    seed: str
    plain: str
    light: str
    change: str
    plain_run: str
    light_run: str


def side_by_side(result: Result) -> Table:
    """Vanilla and light beside each other, or light alone, and which seeds the numbers are of."""
    headings = ["", LIGHT] if result.vanilla is None else ["", result.plain, LIGHT, RATIO]
    table = _table(result.title, headings)
    table.caption, table.caption_justify = Text(seeds_note(result)), "left"
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
    after, ratios = result.light, result.ratios
    ratios["estimation_step_seconds"] = _estimation_ratio(result)
    rows = [Row(after.metric_name, *_both(result, "metric"), _change(result))]
    for name, label in LABELS.items():
        if name != "run_seconds" or after.run_seconds is not None:
            rows.append(Row(label, *_both(result, name), times(ratios[name])))
    return rows


def seeds_note(result: Result) -> str:
    """Which seeds the numbers of `comparison_rows` are of."""
    if not result.seeds:
        return ""
    if len(result.seeds) == 1:
        return f"All of {seed_names(result.seeds)}: nothing here says how much another seed would differ."
    means = [result.light.metric_name, *(["whole run"] if result.light.run_seconds is not None else [])]
    spread = "mean ± standard deviation" if result.per_seed else "mean"
    note = (
        f"{' and '.join(means)}: {spread} over {seed_names(result.seeds)}; the rest: the models of seed "
        f"{result.seeds[0]}."
    )
    if result.vanilla is None:
        return note
    return f"{note} A ratio below 1 is less time, memory or storage than {result.plain}."


def seed_rows(result: Result) -> list[SeedRow]:
    """A row per seed; of several, then their mean and standard deviation."""
    name = result.light.metric_name
    rows = [
        SeedRow(
            str(row["seed"]),
            _or_missing(metric, row["vanilla"]),
            metric(row["light"]),
            MISSING if row["vanilla"] is None else difference(name, row["light"], row["vanilla"]),
            _or_missing(seconds, row["vanilla_seconds"]),
            _or_missing(seconds, row["light_seconds"]),
        )
        for row in result.per_seed
    ]
    if len(rows) < 2:
        return rows
    plain, light = (_spread(metric, result.over_seeds(method)) for method in ("vanilla", "light"))
    run_times = (
        _spread(seconds, result.over_seeds(method)) for method in ("vanilla_seconds", "light_seconds")
    )
    return [*rows, SeedRow("mean ± sd", plain, light, _change(result), *run_times)]


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
    shown = (counts.heads, counts.neurons, counts.modules, counts.ranks)
    return PlanRow(name, *(f"{one.kept}/{one.total}" if one.total else MISSING for one in shown))


def _change(result: Result) -> str:
    before, after = result.vanilla, result.light
    if before is None:
        return MISSING
    deviation = None if result.change is None else result.change.deviation
    change = difference(after.metric_name, after.metric, before.metric, deviation)
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


def _both(result: Result, name: str) -> tuple[str, str]:
    """A number of vanilla and of light; with its spread where it is a mean over seeds."""
    return _number(result, "vanilla", name), _number(result, "light", name)


def _number(result: Result, method: Literal["vanilla", "light"], name: str) -> str:
    measured: Measurement | None = getattr(result, method)
    value = None if measured is None else getattr(measured, name)
    if measured is None or value is None:
        return MISSING
    if name == "estimation_step_seconds":
        steps = measured.estimation_steps
        return seconds(value) + ("" if steps is None else f" ({steps} steps)")
    return _FORMATS[name](value, _deviation(result, method, name))


def _deviation(result: Result, method: Literal["vanilla", "light"], name: str) -> float | None:
    of_seeds: dict[str, SeedNumber] = {
        "metric": method,
        "run_seconds": "vanilla_seconds" if method == "vanilla" else "light_seconds",
    }
    found = result.over_seeds(of_seeds[name]) if name in of_seeds else None
    return None if found is None else found.deviation


def _spread(text: Callable[[float, float | None], str], found: OverSeeds | None) -> str:
    return MISSING if found is None else text(found.mean, found.deviation)


def _or_missing(text: Callable[[float], str], value: float | None) -> str:
    return MISSING if value is None else text(value)


_FORMATS: dict[str, Callable[[float, float | None], str]] = {
    "metric": metric,
    "encoder_parameters": count,
    "peft_parameters": count,
    "run_seconds": seconds,
    "train_step_seconds": seconds,
    "inference_seconds": seconds,
    "peak_memory_bytes": size,
    "checkpoint_bytes": size,
}


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=Text(title))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=place > 0)
    return table
