"""The metric of a grid's methods over what their models cost, as one SVG."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lightpeft.bench.grid import PLAIN
from lightpeft.bench.quality_report import Finished, Summary, entries_of, summaries
from lightpeft.outputs import Output, written_file
from lightpeft.report.figures import FAINT, INK, KEPT, MUTED, headline, house_style, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "frontier.svg"
WIDTH, HEIGHT = 8.0, 3.4
"""Inches, of one model."""


def write_frontier(path: Path, models: Iterable[str], cells: Finished) -> bool:
    """Write the picture of what is finished; False where nothing can be compared yet."""
    found = {model: summaries(entries_of(cells, model)) for model in models}
    found = {model: rows for model, rows in found.items() if PLAIN in rows and len(rows) > 1}
    if found:
        with written_file(path, Output.PICTURE) as beside:
            beside.write_text(frontier(found) + "\n", encoding="utf-8")
    return bool(found)


def frontier(found: dict[str, dict[str, Summary]]) -> str:
    """Points to plain PEFT over encoder parameters, and over inference time: a row of two a model."""
    with house_style():
        figure = new_figure(WIDTH, HEIGHT * len(found))
        grid = figure.subplots(len(found), 2, squeeze=False, sharey="row")
        for axes, (model, rows) in zip(grid, found.items(), strict=True):
            for place, (name, shares) in zip(axes, _SHARES.items(), strict=True):
                _draw(place, rows, {method: shares(one) for method, one in rows.items()})
                place.set_xlabel(f"{name}, share of plain LoRA's")
            axes[0].set_ylabel(f"{model}: points to plain LoRA")
        headline(grid[0][0], "Metric, average over tasks, against what the model costs")
        return to_svg(figure, "frontier", "Metric of every method over the cost of its model.", card=True)


_SHARES: dict[str, Callable[[Summary], float | None]] = {
    "encoder parameters": lambda one: one.encoder,
    "inference time": lambda one: one.inference,
}


def _draw(axes: "Axes", rows: dict[str, Summary], shares: dict[str, float | None]) -> None:
    axes.axhline(0, color=FAINT, linewidth=0.8)
    for method, one in rows.items():
        share = shares[method]
        if share is None or (one.difference is None and method != PLAIN):
            continue
        points = 0.0 if one.difference is None else 100 * one.difference.mean
        error = 0.0 if one.difference is None else 100 * one.difference.half_interval
        colour = KEPT if method.startswith("default") else MUTED
        axes.errorbar(share, points, yerr=error or None, fmt="o", color=colour, markersize=4, linewidth=0.8)
        axes.annotate(method, (share, points), (5, 4), textcoords="offset points", color=INK, fontsize=8)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.15)
