"""`bench quality`, all cells of a grid: means, paired differences to plain PEFT with intervals, a page."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightpeft.bench.cells import Cell, cell_path
from lightpeft.bench.earlier import other_settings
from lightpeft.bench.grid import PLAIN, CellKey, QualityGrid
from lightpeft.errors import OutputError
from lightpeft.outputs import Output, written_file
from lightpeft.report.seeds import OverSeeds, over_seeds
from lightpeft.report.tables import markdown
from lightpeft.report.units import MISSING, lower_is_better, signed

PAGE = "report.md"
NORMAL = 1.96
"""Standard errors on each side of a mean in an interval of 95 %."""


@dataclass(frozen=True)
class Difference:
    """Metric less plain PEFT's, of the same seeds on the same rows."""

    mean: float
    error: float
    """Standard error over seeds and rows."""

    @property
    def half_interval(self) -> float:
        """Of 95 %."""
        return NORMAL * self.error


@dataclass(frozen=True)
class Entry:
    """A method on a task."""

    cells: tuple[Cell, ...]
    """One a seed."""

    difference: Difference | None
    """None of plain PEFT, and where no seed is finished on both sides."""

    @property
    def metric(self) -> OverSeeds:
        """Over seeds."""
        found = over_seeds([cell.main for cell in self.cells])
        assert found is not None
        return found


Entries = dict[str, dict[str, Entry]]
"""By task, then by method."""


@dataclass(frozen=True)
class Summary:
    """A method over all tasks that it and plain PEFT have."""

    mean: float
    difference: Difference | None
    worst: tuple[str, float] | None
    """The task on which it loses most against plain PEFT, and how much."""

    encoder: float
    peft: float
    inference: float | None


Finished = dict[CellKey, Cell]
"""The cells that are there."""


def read_cells(grid: QualityGrid, out: Path) -> Finished:
    """All cells of a grid that are finished."""
    paths = {key: cell_path(out, key) for key in grid.keys()}  # noqa: SIM118
    return {key: Cell.load(path) for key, path in paths.items() if path.exists()}


def entries_of(cells: Finished, model: str) -> Entries:
    """What is finished of a model.

    Raises:
        OutputError: cells of one task were measured on different rows.
    """
    found: dict[str, dict[str, list[Cell]]] = {}
    for key, cell in cells.items():
        if key.model == model:
            found.setdefault(key.task, {}).setdefault(key.method, []).append(cell)
    for task, by_method in found.items():
        _check_rows(task, [cell for row in by_method.values() for cell in row])
    return {
        task: {
            method: Entry(tuple(row), None if method == PLAIN else difference(row, by_method.get(PLAIN, ())))
            for method, row in by_method.items()
        }
        for task, by_method in found.items()
    }


def _check_rows(task: str, cells: Sequence[Cell]) -> None:
    first = cells[0]
    for cell in cells:
        if (cell.rows, cell.digests) != (first.rows, first.digests):
            raise OutputError(
                f"{cell.key.name} was measured on other rows of {task} than {first.key.name}; delete the "
                "older cells and run them again."
            )


def difference(own: Iterable[Cell], plain: Iterable[Cell]) -> Difference | None:
    """The mean over seeds of metric less plain PEFT's, with its standard error; None without a seed of both.

    The error has two parts. Seeds differ: the variance of their differences over their number. And other rows
    would have given another number: the delete-a-group jackknife of the mean difference. With few seeds the
    first is rough, and one seed says nothing about it.
    """
    by_seed = {cell.key.seed: cell for cell in plain}
    pairs = [(cell, by_seed[cell.key.seed]) for cell in own if cell.key.seed in by_seed]
    if not pairs:
        return None
    found = [cell.main - base.main for cell, base in pairs]
    of_seeds = statistics.variance(found) / len(found) if len(found) > 1 else 0.0
    without = [
        statistics.fmean(differences)
        for differences in zip(
            *(
                [one - other for one, other in zip(cell.mains_without, base.mains_without, strict=True)]
                for cell, base in pairs
            ),
            strict=True,
        )
    ]
    parts = len(without)
    of_rows = (parts - 1) * statistics.pvariance(without) if parts > 1 else 0.0
    return Difference(statistics.fmean(found), math.sqrt(of_seeds + of_rows))


def summaries(entries: Entries) -> dict[str, Summary]:
    """Every method over the tasks that are shares of what is right, losses left out."""
    shares = {task: row for task, row in entries.items() if not _is_loss(row)}
    return {
        method: _summary({task: row[method] for task, row in shares.items() if method in row})
        for method in _methods(shares)
    }


def _methods(entries: Entries) -> list[str]:
    """All that have a cell, plain PEFT first."""
    found = dict.fromkeys(method for row in entries.values() for method in row)
    return sorted(found, key=lambda method: method != PLAIN)


def _is_loss(row: dict[str, Entry]) -> bool:
    return lower_is_better(next(iter(row.values())).cells[0].metric)


def _summary(entries: dict[str, Entry]) -> Summary:
    found = {task: entry.difference for task, entry in entries.items() if entry.difference is not None}
    average = worst = None
    if len(found) == len(entries):
        error = math.sqrt(sum(one.error**2 for one in found.values())) / len(found)
        average = Difference(statistics.fmean(one.mean for one in found.values()), error)
        worst = min(((task, one.mean) for task, one in found.items()), key=lambda pair: pair[1])
    return Summary(
        statistics.fmean(entry.metric.mean for entry in entries.values()),
        average,
        worst,
        _over_tasks(entries, lambda cell: cell.encoder),
        _over_tasks(entries, lambda cell: cell.peft),
        _inference(entries),
    )


def _inference(entries: dict[str, Entry]) -> float | None:
    """The mean over the tasks, and of each over the seeds, that it was measured on."""
    known = [
        [cell.inference for cell in entry.cells if cell.inference is not None] for entry in entries.values()
    ]
    means = [statistics.fmean(found) for found in known if found]
    return statistics.fmean(means) if means else None


def _over_tasks(entries: dict[str, Entry], part: Callable[[Cell], float]) -> float:
    """The mean over tasks of the means over seeds."""
    return statistics.fmean(statistics.fmean(map(part, entry.cells)) for entry in entries.values())


def write_page(path: Path, text: str) -> None:
    """Write what `page` gave."""
    with written_file(path, Output.PAGE) as beside:
        beside.write_text(text, encoding="utf-8")


def page(grid: QualityGrid, cells: Finished) -> str:
    """The tables of what is finished, model by model, as Markdown."""
    parts = [_EXPLANATION, *_of_other_settings(grid, cells)]
    for model in grid.models:
        entries = entries_of(cells, model)
        if entries:
            parts += [f"**{model}** ({grid.models[model].model})", _overall(entries), _by_task(entries)]
    return "\n\n".join(parts) + "\n"


def _of_other_settings(grid: QualityGrid, cells: Finished) -> list[str]:
    """What to know of cells that this version, or the grid as it is now, would measure otherwise."""
    odd = {key: other_settings(cell.setting, grid.record(key)) for key, cell in cells.items()}
    names = [key.name for key, words in odd.items() if words is not None]
    return [f"Measured with other settings than the grid has now: {', '.join(names)}."] if names else []


_EXPLANATION = (
    "Metric × 100, mean ± standard deviation over seeds; in brackets the difference to `plain` of the same "
    "seeds, with half of its 95 % interval over seeds and validation rows. Losses are in nats and not part "
    "of the average. Encoder, PEFT parameters and inference (seconds of a forward pass, in turns) are shares "
    "of those of plain LoRA on all linears."
)


def _overall(entries: Entries) -> str:
    rows = [
        [
            f"`{method}`",
            f"{100 * one.mean:.1f}",
            MISSING if one.difference is None else _points(one.difference),
            MISSING if one.worst is None else f"{signed(100 * one.worst[1], 1)} ({one.worst[0]})",
            f"{one.encoder:.2f}",
            f"{one.peft:.2f}",
            MISSING if one.inference is None else f"{one.inference:.2f}",
            str(_tasks_of(method, entries)),
        ]
        for method, one in summaries(entries).items()
    ]
    heading = ["method", "average", "to plain", "worst task", "encoder", "PEFT", "inference", "tasks"]
    return markdown(heading, rows)


def _tasks_of(method: str, entries: Entries) -> int:
    return sum(method in row and not _is_loss(row) for row in entries.values())


def _by_task(entries: Entries) -> str:
    methods = _methods(entries)
    rows = []
    for task, row in entries.items():
        cell = next(iter(row.values())).cells[0]
        seeds = max(len(entry.cells) for entry in row.values())
        sizes = f"{cell.rows['train']}, {cell.rows['validation']}, {seeds}"
        told = [_told(row[method]) if method in row else MISSING for method in methods]
        rows.append([f"{task} ({cell.metric})", sizes, *told])
    return markdown(
        ["task (metric)", "rows, validation, seeds", *(f"`{method}`" for method in methods)], rows
    )


def _told(entry: Entry) -> str:
    scale, digits = (1, 3) if lower_is_better(entry.cells[0].metric) else (100, 1)
    over = entry.metric
    spread = "" if over.deviation is None else f" ± {scale * over.deviation:.{digits}f}"
    text = f"{scale * over.mean:.{digits}f}{spread}"
    if entry.difference is None:
        return text
    one = entry.difference
    return f"{text} ({signed(scale * one.mean, digits)} ± {scale * one.half_interval:.{digits}f})"


def _points(one: Difference) -> str:
    return f"{signed(100 * one.mean, 1)} ± {100 * one.half_interval:.1f}"
