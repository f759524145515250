"""`lightpeft evaluate`: the metric of a light checkpoint on its task."""

from collections.abc import Sequence
from pathlib import Path

from lightpeft.cli.options import run_with_options
from lightpeft.cli.output import print_json


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(evaluate, "evaluate", arguments, positional=True)


def evaluate(
    checkpoint: str,
    data: Path | None = None,
    base: str | None = None,
    batch_size: int | None = None,
    json: bool = False,
) -> None:
    """Measure a light checkpoint on the validation split of its task.

    Args:
        checkpoint: Light checkpoint or a run's folder; local, or a hub name.
        data: Folder with the validation file; by default where it was trained from.
        base: Hub name or folder of the base; by default the one that the checkpoint names.
        batch_size: Examples per forward pass; by default 128, of a language model 8.
        json: Print JSON.
    """
    from lightpeft.cli.checkpoints import open_checkpoint
    from lightpeft.runs import evaluate_model

    model, tokenizer, record = open_checkpoint(checkpoint, base)
    metrics = evaluate_model(model, tokenizer, record.validation(data), record.training(batch_size))
    if json:
        print_json(metrics)
    else:
        print("\n".join(f"{name}: {value:.4f}" for name, value in metrics.items()))
