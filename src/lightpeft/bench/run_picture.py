"""The metric of whole runs over their seconds, as one SVG."""

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lightpeft.bench.methods import METHODS
from lightpeft.outputs import Output, written_file
from lightpeft.report.figures import CUT, FAINT, INK, KEPT, MUTED, headline, house_style, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (8.0, 5.4)
"""Inches."""

_PLAIN = (MUTED, "#cc79a7", "#e69f00", INK, "#a6761d")
_LIGHT = ("#009e73", KEPT, "#56b4e9", CUT, "#8b6fd6", "#1b5e8a")


def save_run_picture(path: Path, summary: dict[str, Any]) -> None:
    """Write the picture of `run_picture` as a file.

    Raises:
        OutputError: something else is there, or it cannot be written.
    """
    with written_file(path, Output.PICTURE) as beside:
        beside.write_text(run_picture(summary) + "\n", encoding="utf-8")


def run_picture(summary: dict[str, Any]) -> str:
    """Metric over seconds, a colour per method: the mean over seeds, each seed thin; plain runs dashed."""
    name = summary["setting"]["metric"]
    with house_style():
        figure = new_figure(*SIZE)
        axes = figure.subplots()
        for key, method in summary["methods"].items():
            _draw(axes, key, method)
        axes.set_xlabel("seconds of the run, evaluation included")
        axes.set_ylabel(name)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower left", ncols=2)
        model, task = summary["setting"]["model"], summary["setting"]["task"]
        headline(axes, f"{name} over time: {Path(model).name} on {task}")
        return to_svg(figure, "run", f"{name} of whole runs over their seconds, per method.", card=True)


def _draw(axes: "Axes", key: str, method: dict[str, Any]) -> None:
    curves = [[(one["seconds"], one["metric"]) for one in seed["curve"]] for seed in method["per_seed"]]
    style: dict[str, Any] = {"color": _colours()[key], "linestyle": "-" if METHODS[key].light else "--"}
    for curve in curves if len(curves) > 1 else ():
        axes.plot(*zip(*curve, strict=True), linewidth=0.7, alpha=0.4, **style)
    # All seeds are evaluated at the same steps.
    mean = [tuple(map(fmean, zip(*points, strict=True))) for points in zip(*curves, strict=True)]
    axes.plot(
        *zip(*mean, strict=True), linewidth=1.8, marker="o", markersize=3.5, label=method["name"], **style
    )


def _colours() -> dict[str, str]:
    """A colour per method, the same in every picture."""
    plain = [key for key, method in METHODS.items() if method.light is None]
    light = [key for key, method in METHODS.items() if method.light is not None]
    return dict(zip(plain, _PLAIN, strict=True)) | dict(zip(light, _LIGHT, strict=True))
