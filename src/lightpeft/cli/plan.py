"""`lightpeft plan`: the second half on its own; scores and a budget give a plan."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lightpeft.cli.options import existing_file, run_with_options
from lightpeft.cli.output import print_json
from lightpeft.config import Budget, LightConfig, Preset, Target
from lightpeft.errors import ConfigError
from lightpeft.outputs import Output, check_file

if TYPE_CHECKING:
    from lightpeft.planning import Pricing


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(plan, "plan", arguments)


def plan(
    scores: Path,
    model: str,
    out: Path | None = None,
    preset: Preset = "default",
    budget: Budget = Budget(),
    target: Target = Target(),
    latency: Path | None = None,
    json: bool = False,
) -> None:
    """Choose what stays, from scores and a budget; no training.

    Args:
        scores: File that `estimate` or `train` wrote.
        model: Hub name or folder of the base; only its configuration is read.
        out: File to write the plan to (JSON).
        preset: `default`, or `paper`; --budget flags change its shares.
        budget: How much is cut.
        target: A share of plain PEFT's cost to meet, instead of shares of heads, neurons and layers.
        latency: The latency.json of a run's folder, which target.inference and target.memory need.
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
    LightConfig(budget=budget, target=target)  # refuses a target beside the shares that it replaces
    pricing = _pricing(target, latency)
    made = make_plan(Scores.load(scores), anatomy_of(model), budget, target=pricing)
    if out is not None:
        save_json(out, made.to_dict(), Output.PLAN)
    if json:
        print_json(made.to_dict())
        return
    print("\n".join(made.reasons))
    if made.evidence is not None:
        print("\n".join(filter(None, (made.evidence.describe(), made.weakness))))
    Console().print(plan_table(made))


def _pricing(target: Target, latency: Path | None) -> "Pricing | None":
    from lightpeft.costs import CostTable
    from lightpeft.files import read_json
    from lightpeft.planning import Pricing

    if not target.is_set:
        return None
    if target.training is not None:
        raise ConfigError(
            "target.training is a share of a run, whose steps no scores know; give it to lightpeft train, or "
            "plan by target.inference, target.memory or target.parameters."
        )
    if latency is None:
        return Pricing(target)
    table = CostTable.from_dict(read_json(existing_file(latency, "the latency.json of a run's folder")))
    return Pricing(target, table)
