"""What a run measured, drawn into axes: curves and ratios."""

from collections.abc import Sequence
from itertools import cycle
from statistics import fmean
from typing import TYPE_CHECKING

from lightpeft.report.data import Curve, Result
from lightpeft.report.figures import CUT, FAINT, INK, KEPT, MUTED, headline
from lightpeft.report.units import LABELS, lower_is_better, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH_FROM = 60
"""Curves with so many points are drawn as their running mean; one alone faintly as it is, too."""

TOO_WIDE = 1.6
"""A ratio beside which the ticks below 1 would lie on each other."""

WHOLE_COLOURS = (MUTED, "#cc79a7", "#e69f00")
LIGHT_COLOURS = (KEPT, "#009e73", "#56b4e9")


def draw_curves(axes: "Axes", curves: Sequence[Curve], name: str, colours: dict[str, str]) -> None:
    """Curves over steps, coloured by label, and where models were cut."""
    for label in dict.fromkeys(curve.label for curve in curves):
        _draw_runs(axes, [curve for curve in curves if curve.label == label], colours[label])
    for number, step in enumerate(sorted({c.cut_step for c in curves if c.cut_step is not None})):
        text = "_" if number else "cut"
        axes.axvline(step, color=CUT, linestyle="--", linewidth=1.2, label=text)
    axes.set_xlabel("optimizer step")
    axes.locator_params(axis="x", integer=True)
    headline(axes, name)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend()


def draw_ratios(axes: "Axes", result: Result) -> None:
    """Bars of light over plain; the line at 1 is plain."""
    drawn = dict(LABELS)
    if lower_is_better(result.light.metric_name):
        drawn["metric"] = result.light.metric_name
    found = {label: result.ratios.get(name) for name, label in drawn.items()}
    bars = [(label, ratio) for label, ratio in found.items() if ratio is not None]
    headline(axes, "Light over plain: less is better")
    if not bars:
        axes.text(0.5, 0.5, "plain PEFT was not run", ha="center", color=MUTED)
        axes.set_axis_off()
        return
    labels, ratios = zip(*bars, strict=True)
    rows = range(len(bars))
    axes.barh(rows, [1.0] * len(bars), color=FAINT, height=0.7)
    axes.barh(rows, ratios, color=KEPT, height=0.7)
    widest = max(1.0, *ratios)
    for row, ratio in zip(rows, ratios, strict=True):
        axes.text(max(1.0, ratio) + widest * 0.02, row, times(ratio), va="center", color=INK)
    axes.axvline(1, color=MUTED, linewidth=1)
    axes.set_xlim(0, widest * 1.16)
    ticks = {0: "0", 0.5: "0.5", 1: "1 = plain"} if widest < TOO_WIDE else {1: "1 = plain"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_yticks(rows, labels)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_runs(axes: "Axes", curves: Sequence[Curve], colour: str) -> None:
    """One run, faint under its running mean where it is long; of several seeds each thin, and their mean."""
    label = _literal(curves[0].label)
    steps, values = _mean_curve(curves)
    is_long = len(curves[0].values) >= SMOOTH_FROM
    for curve in curves if len(curves) > 1 or is_long else ():
        thin = _smoothed(curve) if len(curves) > 1 and is_long else curve.values
        axes.plot(curve.steps, thin, color=colour, linewidth=0.8, alpha=0.45)
    if len(curves) > 1:
        label += f", mean of {len(curves)}"
    marker = "o" if len(values) <= 12 else ""
    axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label)


def _mean_curve(curves: Sequence[Curve]) -> tuple[list[int], list[float]]:
    """The mean of these curves at the steps that all of them have; of long ones, of their running means."""
    found = [
        dict(zip(one.steps, _smoothed(one) if len(one.values) >= SMOOTH_FROM else one.values, strict=True))
        for one in curves
    ]
    steps = sorted(set.intersection(*(set(values) for values in found)))
    return steps, [fmean(values[step] for values in found) for step in steps]


def _smoothed(curve: Curve) -> list[float]:
    """Running mean over the last twentieth of the curve; begins anew at the cut."""
    window = max(2, len(curve.values) // 20)
    means: list[float] = []
    start = 0
    for index, step in enumerate(curve.steps):
        before = curve.steps[index - 1] if index else step
        if curve.cut_step is not None and before <= curve.cut_step < step:
            start = index
        recent = curve.values[max(start, index + 1 - window) : index + 1]
        means.append(sum(recent) / len(recent))
    return means


def curve_colours(curves: Sequence[Curve]) -> dict[str, str]:
    """A colour per label: grey first for what was not cut, blue first for what was."""
    cut = {curve.label for curve in curves if curve.cut_step is not None}
    whole, light = cycle(WHOLE_COLOURS), cycle(LIGHT_COLOURS)
    labels = dict.fromkeys(curve.label for curve in curves)
    return {label: next(light if label in cut else whole) for label in labels}


def _literal(label: str) -> str:
    """A legend entry; a leading underscore would hide it."""
    return f" {label}" if label.startswith("_") else label
