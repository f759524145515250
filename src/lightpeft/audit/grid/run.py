"""Run a grid: measure its cells one after the other; what is measured already is kept."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lightpeft.audit.errors import AuditError
from lightpeft.audit.grid.attackers import Workshop
from lightpeft.audit.grid.cell import Cell, CellKey
from lightpeft.audit.grid.grid import Grid
from lightpeft.audit.grid.measure import Trained, measure, settings
from lightpeft.audit.rows import AuditTask
from lightpeft.runs import load_tokenizer, outline, within_positions

logger = logging.getLogger(__name__)
CELLS, MODULES = "cells", "modules"


def run_grid(
    grid: Grid,
    out: Path,
    *,
    data: Path = Path(),
    only: Callable[[CellKey], bool] = lambda key: True,
) -> list[Cell]:
    """Measure all cells of a grid that are not there yet.

    Writes `out/cells/*.json`, one a cell, and the attackers' modules, marked, to `out/modules/`.

    Args:
        data: folder that relative paths of the grid's data start from.
        only: measure these cells only.

    Raises:
        AuditError: `out` holds cells or modules of other settings, or data that cannot be used.
        ConfigError: see `Grid`.
    """
    tokenizer = load_tokenizer(grid.model)
    grid = _within_positions(grid)
    tasks = {name: task.load(data) for name, task in grid.tasks.items()}
    _check_classes(grid, tasks)
    workshop = Workshop(grid, tasks, tokenizer, out / MODULES)
    wanted = [key for key in grid.keys() if only(key)]  # noqa: SIM118
    found: list[Cell] = []
    plain: Trained | None = None
    for number, key in enumerate(wanted, 1):
        path = out / CELLS / key.file_name
        if path.is_file():
            cell = Cell.load(path)
            if cell.settings != settings(grid, key):
                raise AuditError(
                    f"{path} was measured with other settings than the grid has now; choose another folder "
                    "for this grid, or delete that file."
                )
        else:
            cell, plain = measure(workshop, key, plain)
            cell.save(out / CELLS)
            logger.info("%d of %d: %s", number, len(wanted), _line(cell))
        found.append(cell)
    return found


def _within_positions(grid: Grid) -> Grid:
    """The grid with lengths that its base can take."""
    base = outline(grid.model)
    clean = None if grid.clean is None else within_positions(grid.clean, base, grid.model)
    return replace(
        grid,
        clean=clean,
        attacker=within_positions(grid.attacker, base, grid.model),
        user=within_positions(grid.user, base, grid.model),
    )


def _check_classes(grid: Grid, tasks: dict[str, AuditTask]) -> None:
    """The user goes on training the attacker's head, so both tasks have the same classes."""
    for attacker, user in grid.pairs:
        sizes = [len(tasks[name].class_names) for name in (attacker, user)]
        if sizes[0] != sizes[1]:
            raise AuditError(
                f"the pair {attacker}, {user} has {sizes[0]} and {sizes[1]} classes; a head that goes "
                "from one to the other needs the same."
            )
    for name, attack in grid.attacks.items():
        least = min(len(task.class_names) for task in tasks.values())
        if attack.recipe.target >= least:
            raise AuditError(
                f"attack {name!r} has the target class {attack.recipe.target}, a task has {least} classes."
            )


def _line(cell: Cell) -> str:
    key, after = cell.key, cell.after
    return (
        f"{key.attacker_task} -> {key.user_task}, {key.attack}, {key.form}, {key.defence}, seed {key.seed}: "
        f"CACC {after.cacc.value:.3f}, LFR {cell.curve[0].lfr.value:.3f} -> {after.lfr.value:.3f} "
        f"({cell.seconds:.0f} s)"
    )
