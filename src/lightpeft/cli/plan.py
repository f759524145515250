"""`lightpeft plan`: the second half on its own; scores and a budget give a plan."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightpeft.cli.options import existing_file, run_with_options
from lightpeft.cli.output import print_json
from lightpeft.config import Budget, Preset
from lightpeft.outputs import Output, check_file


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(plan, "plan", arguments)


def plan(
    scores: Path,
    model: str,
    out: Path | None = None,
    preset: Preset = "default",
    budget: Budget = Budget(),
    json: bool = False,
) -> None:
    """Choose what stays, from scores and a budget; no training.

    Args:
        scores: File that `estimate` or `train` wrote.
        model: Hub name or folder of the base; only its configuration is read.
        out: File to write the plan to (JSON).
        preset: `default`, or `paper`; --budget flags change its shares.
        budget: How much is cut.
        json: Print the plan as JSON.
    """
    from lightpeft.cli.anatomy import anatomy_of
    from lightpeft.files import save_json
    from lightpeft.planning import make_plan
    from lightpeft.report import plan_table
    from lightpeft.scores import Scores

    del preset
    if out is not None:
        check_file(out, Output.PLAN)
    existing_file(scores, "the file that estimate wrote")
    made = make_plan(Scores.load(scores), anatomy_of(model), budget)
    if out is not None:
        save_json(out, made.to_dict(), Output.PLAN)
    if json:
        print_json(made.to_dict())
        return
    print("\n".join(made.reasons))
    if made.evidence is not None:
        print("\n".join(filter(None, (made.evidence.describe(), made.weakness))))
    Console().print(plan_table(made))
