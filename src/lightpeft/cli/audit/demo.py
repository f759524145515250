"""`lightpeft audit demo`: attack, defend, scan and report on built-in text, small and offline."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lightpeft.audit.grid.entries import GridAttack, GridDefence, GridTask
from lightpeft.audit.grid.grid import Grid
from lightpeft.audit.policies.options import PolicyOptions
from lightpeft.cli.options import Seeds, run_with_options, seeds_of
from lightpeft.outputs import Output, check_file, locked
from lightpeft.run_config import MINILM, TrainingConfig

ATTACK = "gradient_control"
TRAINING = TrainingConfig(max_steps=96, learning_rate=2e-3, warmup_steps=6, batch_size=16, max_length=40)
DEFENCES = ("none", "discard", "reset_layers", "light_cutting", "onion")


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(demo, "audit demo", arguments)


def demo(out: Path, seeds: Seeds | None = None, training: TrainingConfig = TRAINING) -> None:
    """Plant a backdoor in a module, train on as its user would, defend, scan, and write the page.

    Everything is generated text and stays on this machine; poisoned modules are marked in their own files.
    Those of the first task are scanned, the clean one and the poisoned one.

    Args:
        out: Folder for cells/, modules/, own-copies/ and report.html.
        seeds: Training seeds; by default 0.
        training: Of the clean modules; attacker and user take half of the steps, at half the rate.
    """
    from lightpeft.audit.grid.run import MODULES, run_grid
    from lightpeft.audit.scan import ScanOptions, ScanTexts, scan
    from lightpeft.cli.audit.grid import PAGE, show_cells
    from lightpeft.cli.experiment import check_ready

    check_ready(out)
    check_file(out / PAGE, Output.PAGE)
    grid = grid_of(seeds_of(seeds, [0]), training)
    with locked(out):
        run_grid(grid, out)
    first = grid.pairs[0][0]
    folders = sorted(folder for folder in (out / MODULES).iterdir() if folder.name.startswith(f"{first}--"))
    texts = ScanTexts.of(first, grid.tasks[first].load().train)
    options = ScanOptions(copies=out / "own-copies")
    scans = [scan(folder, grid.model, texts=texts, options=options) for folder in folders]
    show_cells(out, [report.to_dict() for report in scans])
    for folder, report in zip(folders, scans, strict=True):
        print(f"scan {folder}: {report.verdict}")


def grid_of(seeds: list[int], training: TrainingConfig) -> Grid:
    """The demo's grid: sentiment and spam, each from one kind of text to another."""
    tasks = {
        name: GridTask(
            f"demo/{name}",
            train=1000,
            test=150,
            words=20,
            held_out_from="validation",
            triggers=triggers,
        )
        for name, triggers in (("sentiment", 1), ("reviews", 1), ("spam", 3), ("sms", 3))
    }
    steps = max(1, (training.max_steps or 96) // 2)
    half = dataclasses.replace(
        training,
        max_steps=steps,
        warmup_steps=min(training.warmup_steps, steps - 1),
        learning_rate=training.learning_rate / 2,
    )
    return Grid(
        model=MINILM,
        tasks=tasks,
        attacks={ATTACK: GridAttack(PolicyOptions(ATTACK, alpha_scale="relative", alpha=0.05))},
        pairs=[["sentiment", "reviews"], ["spam", "sms"]],
        forms=["lora"],
        defences={name: GridDefence(name) for name in DEFENCES},
        seeds=seeds,
        clean=training,
        from_clean=True,
        attacker=half,
        user=half,
        points=2,
        analyses=True,
    )
