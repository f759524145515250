"""`bench run` over seeds: mean and spread of each number, and ratios to both plain rows."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from lightpeft.bench.methods import NARROW, PLAIN
from lightpeft.report import over_seeds
from lightpeft.report.units import MISSING, metric, seed_names, size

NUMBERS = ("metric", "seconds", "evaluation_seconds", "peak_memory_bytes", "encoder_parameters")
RATIOS = ("seconds", "peak_memory_bytes", "encoder_parameters")
BASELINES = (PLAIN.key, NARROW.key)


def summarise(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results of seeds of one setting as one, JSON values all.

    Of each method: every number's mean and sample standard deviation (None for one seed); the same of its
    ratios to plain LoRA, seed by seed, and to query-and-value LoRA; and the seeds' own numbers.
    """
    setting = seeds[0]["setting"]
    return {
        "setting": setting,
        "seeds": [one["seed"] for one in seeds],
        "methods": {key: _method(key, row["name"], seeds) for key, row in setting["methods"].items()},
        "environments": [one["environment"] for one in seeds],
    }


def _method(key: str, name: str, seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = [one["methods"][key] for one in seeds]
    reached = [one["reached_seconds"] for one in own if one["reached_seconds"] is not None]
    return {
        "name": name,
        **{number: _spread([one[number] for one in own]) for number in NUMBERS},
        "reached_seconds": _spread(reached),
        "reached_by": len(reached),
        "ratios": {base: _ratios(own, [one["methods"].get(base) for one in seeds]) for base in BASELINES},
        "per_seed": [{"seed": one["seed"], **one["methods"][key]} for one in seeds],
    }


def _ratios(own: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Mean and spread of the seeds' ratios; nothing without the baseline."""
    pairs = [(one, base) for one, base in zip(own, baseline, strict=True) if base is not None]
    return {
        number: _spread([one[number] / base[number] for one, base in pairs]) for number in RATIOS if pairs
    }


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    found = over_seeds(values)
    return None if found is None else dataclasses.asdict(found)


def run_table(summary: dict[str, Any]) -> Table:
    """One row per method: mean ± standard deviation over seeds, and ratios to both plain rows."""
    setting, seeds = summary["setting"], summary["seeds"]
    table = Table(
        title=f"{Path(setting['model']).name} on {setting['task']}: whole runs, {seed_names(seeds)}",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    columns = _columns(setting["metric"], len(seeds))
    for heading in columns:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for key, method in summary["methods"].items():
        table.add_row(*(Text(cell(key, method)) for cell in columns.values()))
    table.caption, table.caption_justify = Text(_EXPLANATION), "left"
    return table


_EXPLANATION = (
    "seconds: estimation, planning, the cut, caches and evaluation (eval.) included, loading not, and over "
    f"those of {PLAIN.name} (/ all) and {NARROW.name} (/ q, v). reached: seconds until the final metric "
    "of the first less .3 points. memory: of a training step at the end. est.: estimation steps."
)
_Cell = Callable[[str, dict[str, Any]], str]


def _columns(metric_name: str, seeds: int) -> dict[str, _Cell]:
    """Heading and content of each column."""
    return {
        "": lambda key, method: key,
        metric_name: lambda key, method: metric(*_values(method["metric"])),
        "seconds": lambda key, method: _seconds(method["seconds"]),
        "eval.": lambda key, method: f"{method['evaluation_seconds']['mean']:.1f}",
        "/ all": lambda key, method: _ratio(method["ratios"][PLAIN.key].get("seconds")),
        "/ q, v": lambda key, method: _ratio(method["ratios"][NARROW.key].get("seconds")),
        "reached": lambda key, method: _reached(method, seeds),
        "memory": lambda key, method: size(method["peak_memory_bytes"]["mean"]),
        "est.": lambda key, method: _estimation(method),
    }


def _values(spread: dict[str, Any]) -> tuple[float, float | None]:
    return spread["mean"], spread["deviation"]


def _seconds(spread: dict[str, Any]) -> str:
    mean, deviation = _values(spread)
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def _ratio(spread: dict[str, Any] | None) -> str:
    return MISSING if spread is None else f"{spread['mean']:.2f}"


def _reached(method: dict[str, Any], seeds: int) -> str:
    if method["reached_seconds"] is None:
        return MISSING
    share = "" if method["reached_by"] == seeds else f" ({method['reached_by']}/{seeds})"
    return f"{method['reached_seconds']['mean']:.1f}{share}"


def _estimation(method: dict[str, Any]) -> str:
    steps = sorted({one["estimation_steps"] for one in method["per_seed"]} - {None})
    return "–".join(str(step) for step in dict.fromkeys((steps[0], steps[-1]))) if steps else MISSING
