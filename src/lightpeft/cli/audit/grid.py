"""`lightpeft audit run CONFIG.yaml`: measure a grid of attacks, forms, defences and seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lightpeft.audit.choices import CLEAN
from lightpeft.audit.grid.grid import Grid
from lightpeft.cli.options import run_with_options, with_first_as
from lightpeft.errors import ConfigError
from lightpeft.outputs import Output, check_file, locked

if TYPE_CHECKING:
    from lightpeft.audit.grid.cell import CellKey


PAGE = "report.html"


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb: `CONFIG.yaml` is `--config CONFIG.yaml`."""
    run_with_options(audit, "audit run", with_first_as("--config", arguments))


def audit(
    grid: Grid,
    out: Path,
    data: Path = Path(),
    seeds: list[int] | None = None,
    attacks: list[str] | None = None,
    defences: list[str] | None = None,
) -> None:
    """Measure the cells of a grid that are not in OUT yet, and write the page of all of them.

    Args:
        grid: What is measured.
        out: Folder for cells/, modules/ (the attackers', marked) and report.html.
        data: Folder that relative paths of the grid's data start from.
        seeds: Only these seeds of the grid.
        attacks: Only these attacks of the grid; clean modules, the floor, are always measured.
        defences: Only these defences of the grid.
    """
    from lightpeft.audit.grid.run import run_grid
    from lightpeft.cli.experiment import check_ready

    check_ready(out)
    check_file(out / PAGE, Output.PAGE)
    _check_known("seeds", seeds, grid.seeds)
    _check_known("attacks", attacks, list(grid.attacks))
    _check_known("defences", defences, list(grid.defences))

    def wanted(key: "CellKey") -> bool:
        chosen = key.attack == CLEAN or (
            (attacks is None or key.attack in attacks) and (defences is None or key.defence in defences)
        )
        return chosen and (seeds is None or key.seed in seeds)

    with locked(out):
        run_grid(grid, out, data=data, only=wanted)
        show_cells(out)


def show_cells(out: Path, scans: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the page of all cells in `out`, and of scans of modules, and print the cells' numbers."""
    from lightpeft.audit.grid.cell import load_cells
    from lightpeft.audit.grid.report import summary_tables, write_audit_report
    from lightpeft.audit.grid.run import CELLS

    cells = load_cells(out / CELLS)
    write_audit_report(out / PAGE, cells, scans)
    Console().print(*summary_tables(cells))
    print(f"report: {out / 'report.html'}")


def _check_known(name: str, chosen: Sequence[object] | None, known: Sequence[object]) -> None:
    unknown = [value for value in chosen or [] if value not in known]
    if unknown:
        raise ConfigError(f"--{name} has {unknown}, which the grid has not; it has {list(known)}.")
