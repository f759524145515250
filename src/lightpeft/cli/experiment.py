"""What `train` and `demo` share: check before anything is computed, and show."""

from pathlib import Path

from rich.console import Console

from lightpeft.cli.output import print_json
from lightpeft.errors import ConfigError
from lightpeft.report import Result, check_report_extra, side_by_side, summary


def check_ready(out: Path) -> None:
    """Refuse an output path that is a file, and a report that could not be written.

    Raises:
        ConfigError: what is in the way.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder.")
    check_report_extra()


def show(result: Result, out: Path, *, json: bool) -> None:
    """Print a result as a table, with where it is, or as JSON."""
    if json:
        print_json(result.to_dict())
        return
    console = Console()
    console.print(side_by_side(result))
    console.print(summary(result))
    console.print(f"Light checkpoint: {out / 'light'}   report: {out / 'report.html'}")
