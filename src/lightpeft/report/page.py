"""The report: one HTML file that needs nothing else, neither network nor script."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightpeft.outputs import Output, written_file
from lightpeft.plan import Plan
from lightpeft.report.data import Result
from lightpeft.report.figures import need
from lightpeft.report.pictures import (
    curves_picture,
    heads_picture,
    modules_picture,
    neurons_picture,
    ratios_picture,
    scores_picture,
)
from lightpeft.report.summary import summary
from lightpeft.report.tables import LIGHT, RATIO, comparison_rows, plan_rows
from lightpeft.report.units import MISSING, metric
from lightpeft.scores import Scores


@dataclass(frozen=True)
class Figure:
    """A picture and one sentence on how to read it."""

    svg: str
    caption: str


def write_report(path: Path, result: Result, plan: Plan | None = None, scores: Scores | None = None) -> None:
    """Write the page to `path`, all or nothing; what is None is left out.

    Raises:
        ConfigError: the extra `report` is not installed.
    """
    text = render_report(result, plan, scores)
    with written_file(path, Output.PAGE) as beside:
        beside.write_text(text, encoding="utf-8")


def render_report(result: Result, plan: Plan | None = None, scores: Scores | None = None) -> str:
    """The page as HTML text. Every text from outside is escaped.

    Raises:
        ConfigError: the extra `report` is not installed.
    """
    need("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("lightpeft.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html.j2").render(
        result=result,
        plan=plan,
        summary=summary(result),
        headings=[LIGHT] if result.vanilla is None else [result.plain, LIGHT, RATIO],
        rows=comparison_rows(result),
        ratios=None if result.vanilla is None else _ratios_figure(result),
        curves=_curves_figure(result) if result.curves else None,
        figures=[] if plan is None else _plan_figures(plan, scores),
        plan_rows=[] if plan is None else plan_rows(plan),
        seed_rows=_seed_rows(result),
        environment={name: _value(value) for name, value in result.environment.items()},
        config=json.dumps(result.config, indent=2, ensure_ascii=False),
        names={"plain": result.plain, "light": LIGHT},
    )


def _ratios_figure(result: Result) -> Figure:
    caption = "Blue is light PEFT, the line at 1 is plain: a bar of half the length is half the cost."
    return Figure(ratios_picture(result), caption)


def _curves_figure(result: Result) -> Figure:
    caption = (
        "Read from left to right; the dashed line is the step after which the model was cut. Long "
        "curves are drawn faint, under their running mean."
    )
    return Figure(curves_picture(result), caption)


def _plan_figures(plan: Plan, scores: Scores | None) -> list[Figure]:
    figures = [
        Figure(
            heads_picture(plan),
            "Each row is a layer, each cell an attention head: blue stays, crossed is cut.",
        ),
        Figure(
            neurons_picture(plan),
            "Each bar is a layer's feed-forward width: blue stays, the pale rest is cut.",
        ),
    ]
    if plan.modules:
        caption = (
            "Each cell is a PEFT module: the number says how many ranks stay, darker is more, and a "
            "cross is a module that was removed; empty places never had one."
        )
        figures.append(Figure(modules_picture(plan), caption))
    if scores is not None:
        caption = (
            "How important the units were found, further right is more: orange goes, blue stays. The "
            "dashed line is drawn where one score decided for all units; elsewhere more than the score "
            "counted, as said above. Modules also go with their last rank, and ranks with their module."
        )
        figures.append(Figure(scores_picture(scores, plan), caption))
    return figures


def _seed_rows(result: Result) -> list[tuple[str, str, str]]:
    rows = [(str(row["seed"]), _metric(row["vanilla"]), _metric(row["light"])) for row in result.per_seed]
    if len(rows) > 1:
        before = [row["vanilla"] for row in result.per_seed]
        after = [row["light"] for row in result.per_seed]
        rows.append(("mean", _metric(_mean(before)), _metric(_mean(list(after)))))
    return rows


def _mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if len(found) == len(values) else None


def _metric(value: float | None) -> str:
    return MISSING if value is None else metric(value)


def _value(value: Any) -> str:
    if value is None:
        return MISSING
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
