"""Pictures of an audit, each one inline `<svg>`: along the user's training, and layer by layer."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from lightpeft.audit.choices import CLEAN
from lightpeft.audit.grid.cell import Cell, LayerReading
from lightpeft.audit.grid.report.aggregate import Moment, along_training, similarity_along_training
from lightpeft.audit.grid.report.group import Group, OverSeeds
from lightpeft.report.figures import CUT, FAINT, INK, KEPT, MUTED, WIDTH, house_style, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (CUT, KEPT, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LOG_FROM = 20
"""Gradient norms whose largest is so many times the smallest are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Line:
    """A curve over seeds with its name."""

    label: str
    moments: list[Moment]


def curves_pictures(
    name: str, groups: Sequence[Group], label: Callable[[Group], str], title: str
) -> list[str]:
    """LFR and CACC along the user's training: mean over seeds, band from lowest to highest, floor dashed.

    Args:
        name: first part of all ids in the pictures.
        groups: a line each; `clean` ones are in the picture of CACC only.
        label: of a line.
        title: for those who cannot see it.
    """
    attacks = [group for group in groups if not group.is_clean]
    lfr = [Line(label(group), along_training(group.cells, lambda point: point.lfr)) for group in attacks]
    cacc = [Line(label(group), along_training(group.cells, lambda point: point.cacc)) for group in groups]
    colours = _colours(line.label for line in cacc)
    found = []
    for number, lines, floors in (
        ("LFR", lfr, {label(group): group.floor for group in attacks}),
        ("CACC", cacc, {}),
    ):
        with house_style():
            figure = new_figure(WIDTH, 3.2)
            axes = figure.subplots()
            _draw_lines(axes, lines, colours)
            _draw_floors(axes, floors, colours)
            axes.set(title=f"{number} along the user's training", ylabel="%")
            _finish(axes)
            found.append(to_svg(figure, f"{name}-{number}", f"{number} along the user's training, {title}."))
    return found


def similarity_picture(name: str, groups: Sequence[Group], title: str) -> str:
    """Cosine of [CLS] of triggered texts with what the received module gave, along the user's training."""
    lines = [Line(group.key.attack, similarity_along_training(group.cells)) for group in groups]
    with house_style():
        figure = new_figure(WIDTH, 3.2)
        axes = figure.subplots()
        _draw_lines(axes, lines, _colours(line.label for line in lines), scale=1)
        axes.set(title="[CLS] of triggered texts: similarity\nwith the received module", ylabel="cosine")
        _finish(axes)
        return to_svg(figure, name, f"Similarity of [CLS] along the user's training, {title}.")


def layers_pictures(name: str, cells: Sequence[Cell], title: str) -> list[str]:
    """The attacker's training by layer: gradient norms, their cosine, w, and LFR with a layer switched off.

    Means over the cells; a layer's number is left out where a cell lacks it.
    """
    titles = [layer.title for layer in cells[0].layers]
    rows = [[cell.layers[place] for cell in cells] for place in range(len(titles))]
    panels: dict[str, Callable[[LayerReading], float | None] | None] = {
        "Gradient norms (mean over all steps)": None,
        "Cosine of clean and poisoned gradient": lambda one: one.cosine,
        "w at the end (CLNorm)": lambda one: one.weight,
        "Attacker's LFR with this layer off, %": _lfr_without,
    }
    found = []
    for place, (heading, number) in enumerate(panels.items()):
        with house_style():
            figure = new_figure(WIDTH, 3.0)
            axes = figure.subplots()
            if number is None:
                _draw_norms(axes, titles, rows)
            else:
                _draw_bars(axes, titles, _means(rows, number))
            axes.set_title(heading)
            found.append(to_svg(figure, f"{name}-{place}", f"{heading}, by layer, {title}."))
    return found


def same_layers(cells: Sequence[Cell]) -> bool:
    """Whether these cells have layer readings, of the same layers."""
    titles = {tuple(layer.title for layer in cell.layers) for cell in cells}
    return len(titles) == 1 and titles != {()}


def _draw_lines(axes: "Axes", lines: Sequence[Line], colours: dict[str, str], scale: float = 100) -> None:
    for line in lines:
        steps = [moment.step for moment in line.moments]
        means, lowest, highest = (
            [scale * getattr(moment.spread, name) for moment in line.moments]
            for name in ("mean", "lowest", "highest")
        )
        colour = colours[line.label]
        axes.plot(steps, means, color=colour, linewidth=1.8, marker="o", markersize=3, label=f" {line.label}")
        axes.fill_between(steps, lowest, highest, color=colour, alpha=0.18, linewidth=0)


def _draw_floors(axes: "Axes", floors: dict[str, OverSeeds | None], colours: dict[str, str]) -> None:
    """One line where all have the same floor, else each its own in its colour."""
    means = {label: floor.spread.mean for label, floor in floors.items() if floor is not None}
    is_one = len(set(means.values())) == 1
    for number, (label, mean) in enumerate(means.items()):
        colour = INK if is_one else colours[label]
        name = "_" if number else "floor"
        if not (is_one and number):
            axes.axhline(100 * mean, color=colour, linestyle="--", linewidth=1.2, label=name)


def _draw_norms(axes: "Axes", titles: Sequence[str], rows: Sequence[Sequence[LayerReading]]) -> None:
    places = range(len(titles))
    clean, poisoned = _means(rows, lambda one: one.clean_norm), _means(rows, lambda one: one.poisoned_norm)
    found = [value for value in (*clean, *poisoned) if value]
    if len(found) == 2 * len(titles) and max(found) > LOG_FROM * min(found):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.bar([place - 0.2 for place in places], _drawable(clean), 0.4, color=KEPT, label="clean")
    axes.bar([place + 0.2 for place in places], _drawable(poisoned), 0.4, color=CUT, label="poisoned")
    axes.legend()
    _name_layers(axes, titles)


def _draw_bars(axes: "Axes", titles: Sequence[str], values: Sequence[float | None]) -> None:
    if all(value is None for value in values):
        axes.text(0.5, 0.5, "not measured", ha="center", color=MUTED, transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.bar(range(len(titles)), _drawable(values), 0.7, color=KEPT)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    _name_layers(axes, titles)


def _name_layers(axes: "Axes", titles: Sequence[str]) -> None:
    axes.set_xticks(range(len(titles)), titles, rotation=35, ha="right")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _lfr_without(layer: LayerReading) -> float | None:
    return None if layer.lfr_without is None else 100 * layer.lfr_without.value


def _means(
    rows: Sequence[Sequence[LayerReading]], number: Callable[[LayerReading], float | None]
) -> list[float | None]:
    found = [[number(one) for one in row] for row in rows]
    return [
        None if any(value is None for value in row) else statistics.fmean(v for v in row if v is not None)
        for row in found
    ]


def _drawable(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _colours(labels: Iterable[str]) -> dict[str, str]:
    colours = cycle(COLOURS)
    return {label: MUTED if label == CLEAN else next(colours) for label in dict.fromkeys(labels)}


def _finish(axes: "Axes") -> None:
    axes.set_xlabel("optimizer step")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend()
