"""What a plan keeps, drawn into axes: heads, neurons, PEFT modules. Layer 0 is on top."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightpeft.plan import Count, LayerPlan, ModulePlan, Plan
from lightpeft.report.figures import CUT, FAINT, INK, KEPT, headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path

Cell = tuple[float, float]

SHADES = ("#d6e6f4", "#abd0e6", "#6aaed6", "#3787c0", "#105ba4")
"""Few to all ranks kept; the two darkest carry white text."""

GAP = 0.1
"""Share of a row between two cells."""

CHARACTER = 0.058
"""Inches that one character of a column's name takes."""

SMALLEST_TEXT = 4.5
"""Points; cells too low for it carry no number."""

TITLE = 38
"""Characters of a title that fit on a line."""


def heads_title(plan: Plan) -> str:
    """`Attention heads: 48 of 72 stay`."""
    return _title("Attention heads", plan.counts.heads)


def neurons_title(plan: Plan) -> str:
    """`FFN neurons: 6,144 of 9,216 stay`."""
    return _title("FFN neurons", plan.counts.neurons)


def modules_title(plan: Plan) -> str:
    """`PEFT modules: 18 of 36 stay, with 72 of 288 ranks`."""
    if not plan.modules:
        return "PEFT modules: none"
    ranks = plan.counts.ranks
    return f"{_title('PEFT modules', plan.counts.modules)}, with {ranks.kept:,} of {ranks.total:,} ranks"


def draw_heads(axes: "Axes", plan: Plan, row: float) -> None:
    """One cell per head: filled stays, crossed is cut. A row is `row` inches high."""
    kept = [(head, layer.index) for layer in plan.layers for head in layer.heads]
    cut = [(head, layer.index) for layer in plan.layers for head in _cut_heads(layer)]
    _fill(axes, kept, KEPT)
    _cross(axes, cut, row)
    columns = max((layer.head_count for layer in plan.layers), default=1)
    _frame(axes, columns, layer_labels(plan))
    axes.set_xticks(range(0, columns, 1 + columns // 17))
    axes.set(xlabel="head (× is cut)", ylabel="layer")
    headline(axes, heads_title(plan))


def draw_neurons(axes: "Axes", plan: Plan) -> None:
    """One bar per layer: the neurons that stay, before the full width."""
    rows = [layer.index for layer in plan.layers]
    full = [layer.neuron_count for layer in plan.layers]
    kept = [len(layer.neurons) for layer in plan.layers]
    axes.barh(rows, full, color=FAINT, height=1 - 2 * GAP)
    axes.barh(rows, kept, color=KEPT, height=1 - 2 * GAP)
    widest = max(full, default=1)
    for row, number in zip(rows, kept, strict=True):
        axes.text(widest * 1.02, row, f"{number:,}", va="center", color=INK, fontsize=8)
    _frame(axes, 1, layer_labels(plan))
    axes.set_xlim(0, widest * 1.18)
    axes.set_xticks([0, widest], ["0", f"{widest:,}"])
    axes.set(xlabel="neurons", ylabel="layer")
    headline(axes, neurons_title(plan))


def draw_modules(axes: "Axes", plan: Plan, row: float, column: float) -> None:
    """One cell per PEFT module: the ranks that stay, or a cross where it is removed.

    A row is `row` inches high and a column `column` inches wide.
    """
    headline(axes, textwrap.fill(modules_title(plan), TITLE))
    columns, rows = module_grid(plan)
    labels = layer_labels(plan)
    _frame(axes, len(columns), ["other" if number is None else labels[number] for number in rows])
    if not plan.modules:
        axes.set_axis_off()
        return
    where = {one.name: (columns.index(one.place or one.name), rows.index(one.layer)) for one in plan.modules}
    for shade, colour in enumerate(SHADES):
        _fill(axes, [where[one.name] for one in plan.kept_modules if _shade(one) == shade], colour)
    _cross(axes, [where[one.name] for one in plan.removed_modules], row)
    _number_cells(axes, plan.kept_modules, where, row)
    _name_columns(axes, columns, column)
    axes.set(xlabel="ranks kept (× is removed)", ylabel="layer")


def module_grid(plan: Plan) -> tuple[list[str], list[int | None]]:
    """Columns in the order of their first module, and layers ascending; those outside come last."""
    columns = list(dict.fromkeys(module.place or module.name for module in plan.modules))
    numbers = {module.layer for module in plan.modules}
    rows: list[int | None] = [*sorted(number for number in numbers if number is not None)]
    return columns, rows + ([None] if None in numbers else [])


def layer_labels(plan: Plan) -> list[str]:
    """The layers' names, by number alone where there is one kind of layer, and which are skipped."""
    return [
        layer.name.removeprefix("layer ") + (" (skipped)" if layer.skipped else "") for layer in plan.layers
    ]


def _title(what: str, count: Count) -> str:
    return f"{what}: {count.kept:,} of {count.total:,} stay"


def _cut_heads(layer: LayerPlan) -> list[int]:
    return sorted(set(range(layer.head_count)) - set(layer.heads))


def _shade(module: ModulePlan) -> int:
    share = len(module.ranks) / module.rank_count
    return min(len(SHADES) - 1, int(share * len(SHADES)))


def _number_cells(axes: "Axes", modules: Sequence[ModulePlan], where: Mapping[str, Cell], row: float) -> None:
    size = min(8.0, 50 * row)
    for module in modules if size >= SMALLEST_TEXT else ():
        colour = "#ffffff" if _shade(module) >= len(SHADES) - 2 else "#1b2331"
        column, line = where[module.name]
        text = axes.text(column, line, str(len(module.ranks)), ha="center", va="center")
        text.set(color=colour, fontsize=size)


def _name_columns(axes: "Axes", columns: Sequence[str], width: float) -> None:
    """Names broken at their dots where that fits, else slanted."""
    axes.set_xticks(range(len(columns)))
    longest = max(len(part) for name in columns for part in name.split("."))
    if (longest + 1) * CHARACTER <= width:
        axes.set_xticklabels([name.replace(".", ".\n") for name in columns], fontsize=8)
    else:
        axes.set_xticklabels(columns, fontsize=8, rotation=35, ha="right", rotation_mode="anchor")


def _fill(axes: "Axes", cells: Sequence[Cell], colour: str) -> None:
    from matplotlib.patches import PathPatch

    if cells:
        axes.add_patch(PathPatch(_squares(cells), facecolor=colour, edgecolor="none"))


def _cross(axes: "Axes", cells: Sequence[Cell], row: float) -> None:
    from matplotlib.patches import PathPatch

    if cells:
        axes.add_patch(PathPatch(_squares(cells), facecolor=FAINT, edgecolor="none"))
        columns, rows = zip(*cells, strict=True)
        size = min(5.5, 20 * row)
        axes.plot(columns, rows, linestyle="", marker="x", color=CUT, markersize=size)


def _squares(cells: Sequence[Cell]) -> "Path":
    """All cells as one path, which keeps the SVG small."""
    from matplotlib.path import Path

    near, far = GAP / 2 - 0.5, 0.5 - GAP / 2
    corners = [(near, near), (far, near), (far, far), (near, far), (near, near)]
    vertices = [(x + dx, y + dy) for x, y in cells for dx, dy in corners]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(cells)
    return Path(vertices, codes)


def _frame(axes: "Axes", columns: int, rows: Sequence[str]) -> None:
    axes.set_xlim(-0.5, max(columns, 1) - 0.5)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    every = 1 + len(rows) // 33
    axes.set_yticks(range(0, len(rows), every), rows[::every])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
