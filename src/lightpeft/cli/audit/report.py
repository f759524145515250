"""`lightpeft audit report`: the page of a grid's cells, and its summary in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightpeft.cli.options import run_with_options
from lightpeft.outputs import Output, check_file


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(report, "audit report", arguments, positional=True)


def report(folder: Path, out: Path | None = None) -> None:
    """Write the HTML page of a grid from its cells, and show their numbers.

    Args:
        folder: Folder that `audit run` wrote, or any with cells (JSON) in it.
        out: The page; by default report.html in that folder.
    """
    from lightpeft.audit.grid.cell import load_cells
    from lightpeft.audit.grid.report import summary_tables, write_audit_report
    from lightpeft.audit.grid.run import CELLS

    page = out or folder / "report.html"
    check_file(page, Output.PAGE)
    cells = load_cells(folder / CELLS if (folder / CELLS).is_dir() else folder)
    write_audit_report(page, cells)
    Console().print(*summary_tables(cells))
    print(page)
