"""`lightpeft report`: write the page of a finished run again."""

from collections.abc import Sequence
from pathlib import Path

from lightpeft.cli.options import run_with_options
from lightpeft.errors import ConfigError
from lightpeft.outputs import Output, check_file


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(report, "report", arguments, positional=True)


def report(run: Path, out: Path | None = None) -> None:
    """Write the HTML page of a run from result.json, the plan and the scores.

    Args:
        run: Folder that `train` or `demo` wrote.
        out: The page; by default report.html in that folder.
    """
    from lightpeft.checkpoint import PRUNING, read_record
    from lightpeft.report import Result, write_report
    from lightpeft.runs import LIGHT, SCORES
    from lightpeft.scores import Scores

    page = out or run / "report.html"
    check_file(page, Output.PAGE)
    if not run.is_dir():
        raise ConfigError(f"{run} is no folder; give the one that train or demo wrote.")
    result = Result.load(run / "result.json")
    plan = read_record(run / LIGHT)[0].plan if (run / LIGHT / PRUNING).is_file() else None
    scores = Scores.load(run / SCORES) if (run / SCORES).is_file() else None
    write_report(page, result, plan, scores)
    print(page)
