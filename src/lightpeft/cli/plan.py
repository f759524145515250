"""`lightpeft plan`: the second half on its own; scores and a budget give a plan."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModel

from lightpeft.anatomy import Anatomy, find_anatomy
from lightpeft.cli.options import run_with_options
from lightpeft.cli.output import print_json
from lightpeft.config import Budget, Preset
from lightpeft.errors import ConfigError
from lightpeft.files import write_json
from lightpeft.planning import make_plan
from lightpeft.report import plan_table
from lightpeft.runs import resolve_model
from lightpeft.scores import Scores


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
    del preset
    made = make_plan(Scores.load(scores), anatomy_of(model), budget)
    if out is not None:
        write_json(out, made.to_dict())
    if json:
        print_json(made.to_dict())
        return
    print("\n".join(cutoff.describe() for cutoff in made.cutoffs))
    Console().print(plan_table(made))


def anatomy_of(model: str) -> Anatomy:
    """The anatomy of a base, from its configuration alone; no weights are loaded.

    Raises:
        ConfigError: the configuration cannot be found.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_model(model))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the configuration of {model!r} cannot be loaded: {error}") from error
    with torch.device("meta"):
        return find_anatomy(AutoModel.from_config(config))
