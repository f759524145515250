"""Score distributions of kept and cut units, drawn into axes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lightpeft.plan import Cutoff, Plan
from lightpeft.report.figures import CUT, INK, KEPT, MUTED, headline
from lightpeft.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 30
LOG_FROM = 100
"""Scores whose largest is so many times their smallest are drawn on a log scale."""

DECADES = 8
"""Scores so many decades below the largest count as 0 on a log scale."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class ScoreGroup:
    """The scores of one kind of unit, by what became of the unit."""

    title: str
    kept: tuple[float, ...]
    cut: tuple[float, ...]
    method: str | None
    line: tuple[float, float] | None
    """Highest score cut and lowest kept, where these scores were compared and one of them parts the two."""

    @property
    def headline(self) -> str:
        """`Heads: 24 cut, 48 kept`."""
        return f"{self.title}: {len(self.cut):,} cut, {len(self.kept):,} kept"


@dataclass(frozen=True)
class _Scale:
    """From scores to places on the axis: linear, or decades with a bin of their own for zeros."""

    low: float
    high: float
    log: bool

    def at(self, score: float) -> float:
        if not self.log:
            return score
        return math.log10(score) if score > 0 and math.log10(score) >= self.low else self.zero

    @property
    def width(self) -> float:
        """Of one bin."""
        return (self.high - self.low) / BINS

    @property
    def zero(self) -> float:
        """Middle of the bin for zeros."""
        return self.low - 1.5 * self.width


def score_groups(scores: Scores, plan: Plan) -> list[ScoreGroup]:
    """Heads, neurons, PEFT modules and ranks, each cut or kept as in `plan.counts`."""
    heads = zip(scores.heads, (layer.heads for layer in plan.layers), strict=True)
    neurons = zip(scores.neurons, (layer.neurons for layer in plan.layers), strict=True)
    ranks = ((scores.ranks[one.name], one.ranks) for one in plan.modules)
    modules = [(scores.modules[one.name], bool(one.ranks)) for one in plan.modules]
    of_heads, of_neurons, of_modules, of_ranks = [*plan.cutoffs, *([None] * 4)][:4]
    all_run = not plan.skipped_layers
    return [
        _group("Heads", _flat(heads), of_heads, is_compared=all_run),
        _group("FFN neurons", _flat(neurons), of_neurons, is_compared=all_run),
        _group("PEFT modules", modules, of_modules, is_compared=all_run and plan.frozen_layers == 0),
        _group("Ranks", _flat(ranks), of_ranks),
    ]


def draw_scores(axes: "Axes", group: ScoreGroup) -> None:
    """Histogram of one kind, cut below kept, with the cut line where there is one."""
    headline(axes, group.headline)
    if not group.kept and not group.cut:
        axes.text(0.5, 0.5, "none", ha="center", color=MUTED, transform=axes.transAxes)
        axes.set_axis_off()
        return
    scale = _scale_for([*group.kept, *group.cut])
    low = scale.zero - scale.width / 2 if scale.log else scale.low
    bins = round((scale.high - low) / scale.width)
    placed = [[scale.at(score) for score in side] for side in (group.cut, group.kept)]
    axes.hist(
        placed,
        bins=bins,
        range=(low, scale.high),
        stacked=True,
        color=[CUT, KEPT],
        label=["cut", "kept"],
        rwidth=0.9,
    )
    _draw_line(axes, group, scale)
    _label(axes, scale, group)
    axes.legend()


def _draw_line(axes: "Axes", group: ScoreGroup, scale: _Scale) -> None:
    if group.line is not None:
        place = sum(map(scale.at, group.line)) / 2
        axes.axvline(place, color=INK, linestyle="--", linewidth=1.2)


def _label(axes: "Axes", scale: _Scale, group: ScoreGroup) -> None:
    from matplotlib.ticker import MaxNLocator

    method = "" if group.method is None else f" ({group.method})"
    axes.set(xlabel=f"score{method}{', log scale' if scale.log else ''}", ylabel="units")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    if scale.log:
        first, last = math.ceil(scale.low), math.floor(scale.high)
        decades = range(first, last + 1, 1 + (last - first) // 5)
        has_zero = min(*group.kept, *group.cut, math.inf) <= 0
        texts = [f"10{str(power).translate(_SUPERSCRIPTS)}" for power in decades]
        axes.set_xticks([*([scale.zero] if has_zero else []), *decades])
        axes.set_xticklabels([*(["0"] if has_zero else []), *texts])


def _scale_for(values: Sequence[float]) -> _Scale:
    low, high = min(values), max(values)
    positive = [value for value in values if value > 0]
    if low >= 0 and positive and high / min(positive) >= LOG_FROM:
        top = math.log10(high)
        return _Scale(max(math.log10(min(positive)), top - DECADES), top, log=True)
    if high == low:
        margin = abs(high) / 2 or 0.5
        return _Scale(low - margin, high + margin, log=False)
    return _Scale(low, high, log=False)


def _flat(pairs: Iterable[tuple[Tensor, tuple[int, ...]]]) -> list[tuple[float, bool]]:
    return [
        (value, index in stay)
        for tensor, kept in pairs
        for stay in (frozenset(kept),)
        for index, value in enumerate(tensor.tolist())
    ]


def _group(
    title: str, units: Sequence[tuple[float, bool]], cutoff: Cutoff | None, *, is_compared: bool = True
) -> ScoreGroup:
    kept = tuple(score for score, stays in units if stays)
    cut = tuple(score for score, stays in units if not stays)
    line = cutoff.sides if cutoff is not None and is_compared else None
    return ScoreGroup(title, kept, cut, None if cutoff is None else cutoff.method, line)
