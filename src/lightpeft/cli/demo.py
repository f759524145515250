"""`lightpeft demo`: plain LoRA and light PEFT side by side on a small real encoder, offline."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lightpeft.cli.options import Seeds, run_with_options, seeds_of
from lightpeft.config import LightConfig, check_at_least
from lightpeft.run_config import MINILM, PeftOptions, TrainingConfig

TRAINING = TrainingConfig(max_steps=240, max_length=64, learning_rate=1e-3, eval_steps=80)


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(demo, "demo", arguments)


def demo(
    out: Path,
    seeds: Seeds | None = None,
    training: TrainingConfig = TRAINING,
    train_examples: int = 3000,
    validation_examples: int = 1000,
    json: bool = False,
) -> None:
    """Train plain LoRA and light PEFT for the same steps on built-in text and show both side by side.

    Args:
        out: Folder for result.json, report.html and both checkpoints.
        seeds: Training seeds; by default 0, 1 and 2.
        training: The run; the defaults are the demo's.
        train_examples: Sentences to generate for training.
        validation_examples: Sentences to generate for validation.
        json: Print the result as JSON instead of a table.
    """
    from lightpeft.cli.experiment import check_ready, show
    from lightpeft.cli.tasks import TaskOptions
    from lightpeft.runs import Experiment, make_setting, run_experiment

    check_ready(out)
    check_at_least("train_examples", train_examples, 2)
    check_at_least("validation_examples", validation_examples, 1)
    sizes = {"train": train_examples, "validation": validation_examples}
    options = TaskOptions("demo/sentiment", sizes=sizes)
    task = options.load()
    chosen = seeds_of(seeds, [0, 1, 2])
    experiment = Experiment(
        setting=make_setting(MINILM, task, training, PeftOptions()),
        light=LightConfig.preset("default"),
        seeds=tuple(chosen),
        compare=True,
        task=options.record(task, training),
    )
    result = run_experiment(
        experiment,
        out,
        kind="demo",
        title="all-MiniLM-L6-v2 on demo/sentiment",
        command=f"lightpeft demo {shlex.join(sys.argv[2:])}",
        progress=not json,
    )
    show(result, out, json=json)
