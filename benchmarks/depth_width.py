"""Layers alone, heads and neurons alone, or both: accuracy at the same measured inference time.

python benchmarks/depth_width.py --data FOLDER --out benchmarks/results/depth-width
python benchmarks/depth_width.py --data FOLDER --out DIR --only mpnet-sst2 --cuts width --seed 0 --steps 40

FOLDER has a folder for each task. A plan's target is moved, in runs of a few steps, until the measured share
of plain PEFT's inference is the wanted one, so that what the latency table gets wrong does not decide which
cut looks better.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from targets import (
    BASES,
    MIN_WORDS,
    cell_options,
    chosen_cells,
    inference_share_of,
    setting_of,
    training_of,
)

from lightpeft import EstimationConfig, LightConfig, Target
from lightpeft.bench import save_result
from lightpeft.cli.tasks import TaskOptions
from lightpeft.config import Cuts
from lightpeft.errors import PlanError
from lightpeft.files import read_json, write_json
from lightpeft.outputs import check_room
from lightpeft.report import environment
from lightpeft.runs import Outcome, Setting, fit

WANTED = 0.6
"""Share of plain PEFT's inference time."""

NEAR = 0.03
"""A measured share is taken as the wanted one from so far on."""

TRIES, SHORT, FEW = 3, 7, 5
"""Of targets, the steps of the run in which one is tried, and how often its forward pass is timed."""


@dataclass(frozen=True)
class Cell:
    """A model on a task."""

    model: str
    task: str
    rows: int
    epochs: float
    learning_rate: float
    min_words: int = 0


CELLS = {
    "mpnet-sst2": Cell("all-mpnet-base-v2", "sst2", 2000, 2, 5e-4, MIN_WORDS),
    "mpnet-stsb": Cell("all-mpnet-base-v2", "stsb", 2000, 2, 5e-4),
    "gemma-sst2": Cell("gemma-3-270m", "sst2", 1000, 2, 5e-4, MIN_WORDS),
}
CUTS = [cuts for cuts in get_args(Cuts) if cuts != "auto"]


def main() -> None:
    parser = cell_options(__doc__, "folder with a folder for each task", list(CELLS))
    parser.add_argument("--cuts", choices=CUTS)
    options = parser.parse_args()
    check_room(options.out)
    for name, seed in chosen_cells(options, list(CELLS)):
        run_cell(name, seed, options)


def run_cell(name: str, seed: int, options: argparse.Namespace) -> None:
    """Plain PEFT and each way of cutting; finished ones are kept."""
    methods = [options.cuts] if options.cuts else CUTS
    paths = {method: options.out / f"{name}-{method}-{seed}.json" for method in methods}
    if all(path.is_file() for path in paths.values()):
        return
    cell = CELLS[name]
    task = TaskOptions(f"glue/{cell.task}", options.data / cell.task, ()).load()
    training = training_of(cell.epochs, cell.learning_rate, seed, options)
    with in_float32(BASES / cell.model) as base:
        setting = setting_of(base, task, training, options, cell.rows, cell.min_words)
        with tempfile.TemporaryDirectory() as folder:
            plain = fit(setting, None, Path(folder), progress=False)
        for method, path in paths.items():
            if path.is_file():
                continue
            with tempfile.TemporaryDirectory() as folder:  # one for all tries: what layers cost stays in it
                value = at_wanted_share(setting, method, plain, Path(folder))
            save_result(path, value | {"cell": name, "seed": seed, "environment": environment()})
            told = ("cuts", "main", "plain_main", "target", "predicted", "inference_share")
            print(path, {key: read_json(path)[key] for key in told}, flush=True)


@contextmanager
def in_float32(base: Path) -> Iterator[Path]:
    """A folder that loads the same weights in float32: times in 16 bit did not repeat on the CPUs we had."""
    with tempfile.TemporaryDirectory() as folder:
        for path in base.iterdir():
            (Path(folder) / path.name).symlink_to(path.resolve())
        config = read_json(base / "config.json") | {"dtype": "float32"}
        (Path(folder) / "config.json").unlink()
        write_json(Path(folder) / "config.json", config)
        yield Path(folder)


def at_wanted_share(setting: Setting, cuts: Cuts, plain: Outcome, folder: Path) -> dict[str, Any]:
    """A whole run under the target, of a few tried short, whose measured share is nearest the wanted one."""

    def run(setting: Setting, share: float, estimation: int | Literal["auto"]) -> Outcome:
        light = LightConfig(EstimationConfig(steps=estimation), target=Target(inference=share, cuts=cuts))
        return fit(setting, light, folder, progress=False)

    target, tries = WANTED, []
    for _ in range(TRIES):
        try:
            outcome = run(shortened(setting), round(target, 4), SHORT - 1)
        except PlanError:  # what may go by these cuts does not reach so far
            if not tries:
                raise
            break
        share = inference_share_of(outcome.model, setting, FEW)
        print(cuts, {"target": round(target, 4), "share": round(share, 3)}, flush=True)
        tries.append({"target": round(target, 4), "share": share})
        if abs(share - WANTED) <= NEAR:
            break
        target = min(0.95, max(0.1, target * WANTED / share))
    best = min(tries, key=lambda one: abs(one["share"] - WANTED))
    outcome = run(setting, best["target"], "auto")
    return {"cuts": cuts, "wanted": WANTED, **numbers(outcome, plain, setting), "tries": tries}


def shortened(setting: Setting) -> Setting:
    """A run just long enough to be cut."""
    training = dataclasses.replace(setting.training, max_steps=SHORT, eval_steps=None)
    few = setting.validation.select(range(min(32, len(setting.validation))))
    return dataclasses.replace(setting, training=training, validation=few)


def numbers(outcome: Outcome, plain: Outcome, setting: Setting) -> dict[str, Any]:
    assert outcome.light is not None
    plan = outcome.light.plan
    assert plan is not None
    assert plan.target is not None
    return {
        "main": outcome.main,
        "plain_main": plain.main,
        "target": plan.target.share,
        "predicted": plan.target.predicted,
        "inference_share": inference_share_of(outcome.model, setting, FEW),
        "kept": {kind: count.kept for kind, count in plan.counts._asdict().items()},
    }


if __name__ == "__main__":
    main()
