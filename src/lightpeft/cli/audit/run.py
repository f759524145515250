"""`lightpeft audit run CONFIG.yaml`: measure a grid of attacks, forms, defences and seeds."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightpeft.audit.cell import load_cells
from lightpeft.audit.grid import Grid
from lightpeft.audit.report import summary_table, write_audit_report
from lightpeft.audit.run import CELLS, run_grid
from lightpeft.cli.options import run_with_options


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb: `CONFIG.yaml` is `--config CONFIG.yaml`."""
    words = list(arguments)
    if words and not words[0].startswith("-"):
        words.insert(0, "--config")
    run_with_options(audit, "audit run", words)


def audit(
    grid: Grid, out: Path, data: Path = Path(), seed: int | None = None, attack: str | None = None
) -> None:
    """Measure the cells of a grid that are not in OUT yet, and write the page of all of them.

    Args:
        grid: What is measured.
        out: Folder for cells/, modules/ (the attackers', marked) and report.html.
        data: Folder that relative paths of the grid's data start from.
        seed: Only this seed of the grid.
        attack: Only this attack of the grid, or `clean`.
    """
    run_grid(
        grid,
        out,
        data=data,
        only=lambda key: seed in (None, key.seed) and attack in (None, key.attack),
    )
    cells = load_cells(out / CELLS)
    write_audit_report(out / "report.html", cells)
    Console().print(summary_table(cells))
    print(f"report: {out / 'report.html'}")
