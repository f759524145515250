"""What `train` and `demo` share: check before anything is computed, and show."""

from pathlib import Path

from rich.console import Console

from lightpeft.cli.output import print_json
from lightpeft.errors import ConfigError, OutputError
from lightpeft.outputs import check_room
from lightpeft.report import Result, check_report_extra, side_by_side, summary
from lightpeft.run_config import PeftOptions
from lightpeft.runs import base_of_adapter


def check_ready(out: Path) -> None:
    """Refuse a folder that cannot be written to, and a report that could not be made.

    Raises:
        ConfigError: the extra `report` is not installed.
        OutputError: what is in the way.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a folder.")
    check_room(out)
    check_report_extra()


def base_to_use(model: str | None, options: PeftOptions) -> str:
    """The base that was asked for, or the one of the adapter to go on from.

    Raises:
        ConfigError: neither says which.
    """
    if model is not None:
        return model
    if options.adapter is None:
        raise ConfigError("give --model, the hub name or folder of a base (or --adapter, which names one).")
    return base_of_adapter(options.adapter)


def show(result: Result, out: Path, *, json: bool) -> None:
    """Print a result as a table, with where it is, or as JSON."""
    if json:
        print_json(result.to_dict())
        return
    console = Console()
    console.print(side_by_side(result))
    console.print(summary(result))
    console.print(f"Light checkpoint: {out / 'light'}   report: {out / 'report.html'}")
