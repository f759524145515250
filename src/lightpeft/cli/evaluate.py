"""`lightpeft evaluate`: the metric of a light checkpoint on its task, or what lm-evaluation-harness finds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightpeft.cli.options import Names, names_of, run_with_options
from lightpeft.cli.output import print_json
from lightpeft.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from lightpeft.runs import HarnessScore


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(evaluate, "evaluate", arguments, positional=True)


def evaluate(
    checkpoint: str,
    data: Path | None = None,
    base: str | None = None,
    batch_size: int | None = None,
    harness: Names | None = None,
    harness_tasks: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    json: bool = False,
) -> None:
    """Measure a light checkpoint on the validation split of its task, or on tasks of lm-evaluation-harness.

    Args:
        checkpoint: Light checkpoint or a run's folder; local, or a hub name.
        data: Folder with the validation file; by default where it was trained from.
        base: Hub name or folder of the base; by default the one that the checkpoint names.
        batch_size: Examples per forward pass; by default 128, of a language model 8.
        harness: Of a causal language model: tasks of lm-evaluation-harness to measure, as in arc_easy,boolq.
        harness_tasks: With harness, a folder with task files of your own, whose code is run.
        num_fewshot: With harness, solved examples before each question; by default what the task says.
        limit: With harness, ask only so many questions of each task, for a trial.
        json: Print JSON.
    """
    if harness is not None:
        if data is not None:
            raise ConfigError("data has no effect with harness, whose tasks bring their own; leave it out.")
        names = names_of(harness)
        scores = _on_harness(checkpoint, names, base, harness_tasks, batch_size, num_fewshot, limit)
        _print_scores(scores, limit, json)
        return
    for name, value in (("harness_tasks", harness_tasks), ("num_fewshot", num_fewshot), ("limit", limit)):
        if value is not None:
            raise ConfigError(f"{name} has no effect without harness; leave it out, or name tasks.")
    metrics = _on_own_task(checkpoint, data, base, batch_size)
    if json:
        print_json(metrics)
    else:
        print("\n".join(f"{name}: {value:.4f}" for name, value in metrics.items()))


def _on_own_task(
    checkpoint: str, data: Path | None, base: str | None, batch_size: int | None
) -> dict[str, float]:
    from lightpeft.cli.checkpoints import open_checkpoint
    from lightpeft.runs import evaluate_model

    model, tokenizer, record = open_checkpoint(checkpoint, base)
    return evaluate_model(model, tokenizer, record.validation(data), record.training(batch_size))


def _on_harness(
    checkpoint: str,
    names: Sequence[str],
    base: str | None,
    folder: Path | None,
    batch_size: int | None,
    num_fewshot: int | None,
    limit: int | None,
) -> "list[HarnessScore]":
    """Scores by the harness; what can go wrong without the model does so before it is loaded."""
    from lightpeft.cli.checkpoints import find_language_model, open_model, open_tokenizer
    from lightpeft.runs import ask_harness, check_harness_options, load_harness_tasks
    from lightpeft.tasks import find_kind

    check_harness_options(names, batch_size, num_fewshot, limit)
    directory, described = find_language_model(checkpoint, base)
    tasks = load_harness_tasks(names, folder)
    tokenizer, model = open_tokenizer(directory), open_model(directory, described, base)
    size = find_kind("causal-lm").batch_size if batch_size is None else batch_size
    return ask_harness(model, tokenizer, tasks, batch_size=size, num_fewshot=num_fewshot, limit=limit)


def _print_scores(scores: "Sequence[HarnessScore]", limit: int | None, json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from lightpeft.runs import harness_version

    if json:
        print_json({"lm_eval": harness_version(), "limit": limit, "scores": [asdict(one) for one in scores]})
    else:
        Console().print(_table(scores, f"lm-evaluation-harness {harness_version()}", limit))


def _table(scores: "Sequence[HarnessScore]", title: str, limit: int | None) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for heading in ("task", "metric"):
        table.add_column(heading)
    for heading in ("value", "stderr"):
        table.add_column(heading, justify="right")
    for one in scores:
        numbers = ("–" if value is None else f"{value:.4f}" for value in (one.value, one.stderr))
        table.add_row(*map(Text, (one.task, one.metric, *numbers)))
    if limit is not None:
        table.caption = f"{limit} questions a task at most"
    return table
