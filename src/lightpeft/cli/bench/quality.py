"""`lightpeft bench quality GRID.yaml`: the metric of methods on tasks, one cell a file; safe to stop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightpeft.bench.grid import QualityGrid
from lightpeft.cli.options import Names, Seeds, names_of, run_with_options, seeds_of, with_first_as
from lightpeft.config import check_choice
from lightpeft.errors import ConfigError, LightPeftError, OutputError
from lightpeft.outputs import Output, check_file, check_room

if TYPE_CHECKING:
    from lightpeft.bench.grid import CellKey


class CellsFailedError(LightPeftError):
    """Some cells could not be measured; the others are kept."""


def run(arguments: Sequence[str]) -> None:
    """Entry point of the benchmark: `GRID.yaml` is `--config GRID.yaml`."""
    run_with_options(quality, "bench quality", with_first_as("--config", arguments))


def quality(
    grid: QualityGrid,
    out: Path,
    data: Path = Path(),
    bases: Path | None = None,
    only_models: Names | None = None,
    only_tasks: Names | None = None,
    only_methods: Names | None = None,
    seeds: Seeds | None = None,
    report: bool = False,
) -> None:
    """Measure the cells of a grid that are not in OUT yet, and write the tables and the picture of all.

    Every cell is one file, written when it is done, so a grid can be stopped at any time. A cell that another
    process is at is left to it: several processes, or machines, may share OUT.

    Args:
        grid: What is measured.
        out: Folder for cells/, report.md and frontier.svg.
        data: Folder that the grid's data starts from.
        bases: Folder in which the grid's bases are looked for before the hub, by the last part of their
            names.
        only_models: Only these models of the grid.
        only_tasks: Only these tasks of the grid.
        only_methods: Only these methods of the grid.
        seeds: Only these seeds.
        report: Measure nothing; write the tables and the picture of the cells that are there.
    """
    from lightpeft.bench.cells import measure_cells
    from lightpeft.bench.quality_picture import PICTURE, write_frontier
    from lightpeft.bench.quality_report import PAGE, page, read_cells, write_page
    from lightpeft.report import check_report_extra

    check_report_extra()
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a folder.")
    check_room(out)
    check_file(out / PAGE, Output.PAGE)
    check_file(out / PICTURE, Output.PICTURE)
    wanted = _chosen(grid, only_models, only_tasks, only_methods, seeds)
    failed = {} if report else measure_cells(grid, out, data=data, models=bases, only=wanted)
    cells = read_cells(grid, out)
    text = page(grid, cells)
    write_page(out / PAGE, text)
    drawn = write_frontier(out / PICTURE, grid.models, cells)
    print(text)
    print(f"Tables: {out / PAGE}" + (f"   picture: {out / PICTURE}" if drawn else ""))
    if failed:
        raise CellsFailedError(
            f"{len(failed)} cells failed ({', '.join(key.name for key in failed)}); the first: "
            f"{next(iter(failed.values()))}"
        )


def _chosen(
    grid: QualityGrid,
    models: Names | None,
    tasks: Names | None,
    methods: Names | None,
    seeds: Seeds | None,
) -> Callable[["CellKey"], bool]:
    """Whether a cell was asked for.

    Raises:
        ConfigError: a name or a seed that is not in the grid.
    """
    chosen = {"models": names_of(models), "tasks": names_of(tasks), "methods": names_of(methods)}
    for group, names in chosen.items():
        for name in names:
            check_choice(f"only_{group}", name, tuple(getattr(grid, group)))
    only_seeds, known = seeds_of(seeds, ()), sorted({key.seed for key in grid.keys()})  # noqa: SIM118
    for seed in only_seeds:
        if seed not in known:
            raise ConfigError(f"seeds has {seed}, which the grid does not; it has {known}.")

    def wanted(key: "CellKey") -> bool:
        parts = zip((key.model, key.task, key.method), chosen.values(), strict=True)
        is_chosen = all(not names or part in names for part, names in parts)
        return is_chosen and (not only_seeds or key.seed in only_seeds)

    return wanted
