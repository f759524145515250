"""The report: one HTML file that needs nothing else, neither network nor script."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightpeft.errors import ConfigError
from lightpeft.outputs import Output, written_file
from lightpeft.plan import Plan
from lightpeft.report.data import Result
from lightpeft.report.figures import need
from lightpeft.report.pictures import (
    curves_pictures,
    heads_picture,
    modules_picture,
    neurons_picture,
    ratios_picture,
    scores_picture,
)
from lightpeft.report.run_axes import SMOOTH_FROM
from lightpeft.report.score_axes import score_groups
from lightpeft.report.summary import summary
from lightpeft.report.tables import LIGHT, RATIO, SeedRow, comparison_rows, plan_rows, seed_rows, seeds_note
from lightpeft.report.units import MISSING, seed_names
from lightpeft.scores import Scores


@dataclass(frozen=True)
class Figure:
    """A picture and one sentence on how to read it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Grid:
    """A table of texts; the first column names the rows."""

    headings: list[str]
    rows: list[list[str]]
    has_total: bool = False
    """Whether the last row sums the others up."""


def write_report(path: Path, result: Result, plan: Plan | None = None, scores: Scores | None = None) -> None:
    """Write the page to `path`, all or nothing; what is None is left out.

    Raises:
        ConfigError: the extra `report` is not installed.
    """
    with written_file(path, Output.PAGE) as beside:
        beside.write_text(render_report(result, plan, scores), encoding="utf-8")


def render_report(result: Result, plan: Plan | None = None, scores: Scores | None = None) -> str:
    """The page as HTML text. Every text from outside is escaped.

    Args:
        plan: of the first seed, and so the scores.

    Raises:
        ConfigError: the extra `report` is not installed, or the plan is of another run.
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
    templates.filters["tied"] = _tied
    if plan is not None:
        _check_same_run(result, plan)
    return templates.get_template("page.html.j2").render(
        result=result,
        plan=plan,
        summary=summary(result),
        headings=[LIGHT] if result.vanilla is None else [result.plain, LIGHT, RATIO],
        rows=comparison_rows(result),
        seeds_note=seeds_note(result),
        ratios=[] if result.vanilla is None else [_ratios_figure(result)],
        seed_tables=_seed_tables(result),
        curves=[Figure(svg, "") for svg in curves_pictures(result)],
        curves_note=_curves_note(result),
        plan_of=_plan_of(result),
        seed_cuts=_seed_cuts(result),
        maps=[] if plan is None else _maps(plan, result),
        scores=[] if plan is None or scores is None else _scores(scores, plan),
        plan_rows=[] if plan is None else plan_rows(plan),
        environment={name: _value(value) for name, value in result.environment.items()},
        config=json.dumps(result.config, indent=2, ensure_ascii=False),
        seed_names=seed_names,
    )


def _check_same_run(result: Result, plan: Plan) -> None:
    """Refuse to show the plan of another run beside these numbers."""
    for found in result.seed_cuts:
        mine = getattr(plan.counts, found.kind, None)
        if mine is None or (mine.cut, mine.total) != (found.cut[0], found.total):
            raise ConfigError(
                f"the plan is of another run than result.json, whose first seed cut {found.cut[0]} of "
                f"{found.total} {found.kind}."
            )


def _ratios_figure(result: Result) -> Figure:
    caption = (
        "The line at 1 is plain, blue is light: a bar of half the length is half the time, memory or storage."
    )
    return Figure(ratios_picture(result), caption)


def _curves_note(result: Result) -> str:
    seeds = sorted({curve.seed for curve in result.curves if curve.seed is not None})
    whose = seed_names(seeds).capitalize() + ". " if seeds else ""
    several = "Thin lines are single seeds, thick ones their mean. " if len(seeds) > 1 else ""
    long = any(len(curve.values) >= SMOOTH_FROM for curve in result.curves)
    smoothed = " Curves of many points are drawn as running means." if long else ""
    return f"{whose}{several}A dashed line is a step after which a model was cut.{smoothed}"


def _plan_of(result: Result) -> str:
    """Whose plan and scores are shown."""
    return f"seed {result.seeds[0]}, whose model is saved" if result.seeds else "this run"


def _maps(plan: Plan, result: Result) -> list[Figure]:
    whose = f"Seed {result.seeds[0]}. " if result.seeds else ""
    figures = [
        Figure(
            heads_picture(plan),
            f"{whose}Each row is a layer, each cell an attention head: blue stays, crossed is cut.",
        ),
        Figure(
            neurons_picture(plan),
            f"{whose}Each bar is a layer's feed-forward width: blue stays, the pale rest is cut.",
        ),
    ]
    if plan.modules:
        caption = (
            f"{whose}Each cell is a PEFT module: the number says how many ranks stay, darker is more, and a "
            "cross is a module that was removed; empty places never had one."
        )
        figures.append(Figure(modules_picture(plan), caption))
    return figures


def _scores(scores: Scores, plan: Plan) -> list[Figure]:
    """One histogram per kind of unit.

    Raises:
        ValueError: the scores have another number of layers than the plan.
        KeyError: the plan names a PEFT module that the scores do not have.
    """
    return [
        Figure(scores_picture(group, str(number)), "")
        for number, group in enumerate(score_groups(scores, plan))
    ]


def _seed_tables(result: Result) -> list[tuple[str, Grid]]:
    """What each seed reached, and how long its runs took where that is known; each with its caption."""
    rows = seed_rows(result)
    plain = {} if result.vanilla is None else {"plain": result.plain}
    shown = {"seed": "seed", **plain, "light": LIGHT, **({"change": "difference"} if plain else {})}
    runs = {"seed": "seed", **({"plain_run": result.plain} if plain else {}), "light_run": LIGHT}
    tables = [(f"{result.light.metric_name} of each seed", _seed_grid(rows, shown))] if rows else []
    if any(row.light_run != MISSING for row in rows):
        caption = "whole run of each seed: all of its training, with estimation, cut and evaluations"
        tables.append((caption, _seed_grid(rows, runs)))
    return tables


def _seed_grid(rows: Sequence[SeedRow], shown: dict[str, str]) -> Grid:
    cells = [[getattr(row, name) for name in shown] for row in rows]
    return Grid(list(shown.values()), cells, has_total=len(rows) > 1)


def _seed_cuts(result: Result) -> Grid | None:
    """Units that seeds cut, and that all of them cut; None for one seed."""
    if len(result.seeds) < 2 or not result.seed_cuts:
        return None
    headings = ["units", f"cut by {seed_names(result.seeds)}", "by all of them", "by chance"]
    rows = [
        [
            found.kind.replace("modules", "PEFT modules"),
            ", ".join(f"{cut:,}" for cut in found.cut),
            f"{found.by_all:,}",
            f"{found.by_chance:,.1f}",
        ]
        for found in result.seed_cuts
    ]
    return Grid(headings, rows)


def _tied(text: str) -> str:
    """Units stay on the line of their number, and `±` on that of what follows."""
    return re.sub(r"(?<=±) | (?=(?:[µm]?s|[kMGT]?B|[kMGT])$)", "\N{NO-BREAK SPACE}", text)


def _value(value: Any) -> str:
    if value is None:
        return MISSING
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
