"""What `train` and `demo` share: check before anything is computed, run, show."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from lightpeft.cli.output import print_json
from lightpeft.errors import ConfigError
from lightpeft.report import check_report_extra, side_by_side, summary
from lightpeft.runs import Experiment, run_experiment


def check_ready(out: Path) -> None:
    """Refuse an output path that is a file, and a report that could not be written.

    Raises:
        ConfigError: what is in the way.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder.")
    check_report_extra()


def run_and_show(
    experiment: Experiment,
    out: Path,
    *,
    kind: Literal["demo", "train"],
    title: str,
    command: str,
    resume: bool = False,
    json: bool = False,
) -> None:
    """Run, and print the result as a table or as JSON."""
    result = run_experiment(
        experiment, out, kind=kind, title=title, command=command, resume=resume, progress=not json
    )
    if json:
        print_json(result.to_dict())
        return
    console = Console()
    console.print(side_by_side(result))
    console.print(summary(result))
    console.print(f"Light checkpoint: {out / 'light'}   report: {out / 'report.html'}")
