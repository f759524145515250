"""The pictures of a report, each as one inline `<svg>`: vector, no font, no script, nothing fetched."""

from typing import TYPE_CHECKING

from lightpeft.plan import Plan
from lightpeft.report.data import Result
from lightpeft.report.figures import WIDTH, house_style, new_figure, to_svg
from lightpeft.report.plan_axes import (
    draw_heads,
    draw_modules,
    draw_neurons,
    heads_title,
    module_grid,
    modules_title,
    neurons_title,
)
from lightpeft.report.run_axes import curve_colours, draw_curves, draw_ratios
from lightpeft.report.score_axes import ScoreGroup, draw_scores
from lightpeft.report.units import seed_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

LABELS = 0.9
"""Inches of a map that its rows' labels take."""

CARD = 10.0
"""Inches of the picture for a README."""

TALLEST = 12.0
ROW = 0.34
"""Inches of one layer in a map, unless all of them would be higher than `TALLEST`."""

MARGIN = 0.9
"""Inches above and below a map: title and labels."""


def heads_picture(plan: Plan) -> str:
    """Layers × heads: filled stays, crossed is cut."""
    rows, columns = len(plan.layers), max(layer.head_count for layer in plan.layers)
    row, column = _row(rows), min(ROW, (WIDTH - LABELS) / max(1, columns))
    with house_style():
        figure = new_figure(WIDTH, MARGIN + row * rows)
        axes = figure.subplots()
        draw_heads(axes, plan, min(row, column))
        if column == row:
            axes.set_aspect("equal", anchor="NW")
        return to_svg(figure, "heads", f"{heads_title(plan)}. Map of layers and heads.")


def neurons_picture(plan: Plan) -> str:
    """Neurons that stay per layer, before the full width."""
    rows = len(plan.layers)
    with house_style():
        figure = new_figure(WIDTH, MARGIN + _row(rows) * rows)
        draw_neurons(figure.subplots(), plan)
        return to_svg(figure, "neurons", f"{neurons_title(plan)}. One bar per layer.")


def modules_picture(plan: Plan) -> str:
    """PEFT modules by layer and place, coloured by kept ranks; removed ones crossed."""
    columns, rows = (max(1, len(names)) for names in module_grid(plan))
    row, column = _row(rows), (WIDTH - LABELS) / columns
    with house_style():
        figure = new_figure(WIDTH, MARGIN + 0.9 + row * rows)
        draw_modules(figure.subplots(), plan, row, column)
        return to_svg(figure, "modules", f"{modules_title(plan)}. Map of layers and modules.")


def scores_picture(group: ScoreGroup, name: str) -> str:
    """Histogram of the scores of cut and kept units of one kind, with the cut line where there is one."""
    with house_style():
        figure = new_figure(WIDTH, 2.6)
        draw_scores(figure.subplots(), group)
        return to_svg(figure, f"scores-{name}", f"{group.headline}. Histogram of their scores.")


def curves_pictures(result: Result) -> list[str]:
    """Loss and metric over steps, a picture each, with the cut as a vertical line."""
    names = {"loss": "Training loss", "metric": f"Validation {result.light.metric_name}"}
    colours = curve_colours(result.curves)
    found = []
    for kind, name in names.items():
        curves = [curve for curve in result.curves if curve.kind == kind]
        if curves:
            with house_style():
                figure = new_figure(WIDTH, 3.2)
                draw_curves(figure.subplots(), curves, name, colours)
                found.append(to_svg(figure, f"curves-{kind}", f"{name} over optimizer steps."))
    return found


def ratios_picture(result: Result) -> str:
    """Bars of light over plain: parameters, time, memory, storage."""
    with house_style():
        figure = new_figure(WIDTH, 2.8)
        draw_ratios(figure.subplots(), result)
        return to_svg(figure, "ratios", "Bars of light over plain; the numbers are in the table.")


def readme_picture(result: Result, plan: Plan) -> str:
    """Heads, neurons, PEFT modules and ratios in one picture, on white, as a file of its own.

    Args:
        plan: of the first seed.
    """
    columns, rows = (max(1, len(names)) for names in module_grid(plan))
    deepest = max(len(plan.layers), rows)
    row = min(ROW, 5.0 / deepest)
    height = max(2.6, MARGIN + 0.3 + row * deepest)
    with house_style():
        figure = new_figure(CARD, 2 * height)
        heads, neurons, modules, ratios = _quarters(figure)
        draw_heads(heads.subplots(), plan, row)
        draw_neurons(neurons.subplots(), plan)
        draw_modules(modules.subplots(), plan, row, 4.6 / columns)
        draw_ratios(ratios.subplots(), result)
        whose = _whose(result)
        figure.supxlabel(whose, x=0.01, horizontalalignment="left", fontsize=9)
        label = f"{heads_title(plan)}. {neurons_title(plan)}. {modules_title(plan)}. {whose}"
        return to_svg(figure, "overview", label, card=True)


def _whose(result: Result) -> str:
    """Which seeds the plan and the ratios are of."""
    if not result.seeds:
        return ""
    run = f" Whole run: mean of {seed_names(result.seeds)}." if result.light.run_seconds is not None else ""
    return f"Plan and models of seed {result.seeds[0]}.{run}"


def _quarters(figure: "Figure") -> list["SubFigure"]:
    """Left column wide, as maps need it; right column for bars. Row by row."""
    widths = (1.15, 1)
    quarters = figure.subfigures(2, 2, squeeze=False, width_ratios=widths, wspace=0.04, hspace=0.04)
    return list(quarters.flat)


def _row(rows: int) -> float:
    return min(ROW, TALLEST / rows)
