"""How many steps scores need: how far plans after fewer steps, of half the steps and of other seeds agree.

python benchmarks/estimation_length.py benchmarks/configs/estimation-length.yaml --data DATA \
    --out benchmarks/results/estimation-length.json
python benchmarks/estimation_length.py benchmarks/configs/estimation-length.yaml \
    --table benchmarks/results/estimation-length.json

Each seed draws its own adapter, head and order of the data. What each of the first 160 steps of its run adds
to the scores is recorded once; plans are then made of these records, for every length and every choice of
steps. The accuracy after whole runs is what `lightpeft bench quality` measures of the same configuration.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lightpeft import LightConfig, Plan, make_plan
from lightpeft.bench import result_file, save_result
from lightpeft.bench.grid import PLAIN, CellKey, QualityGrid
from lightpeft.cli.options import run_with_options
from lightpeft.estimation import Estimator
from lightpeft.evidence import Agreement
from lightpeft.files import read_json
from lightpeft.planning import agreements
from lightpeft.report import environment
from lightpeft.runs import Setting, prepare

LENGTHS = (2, 4, 8, 10, 16, 20, 24, 32, 40, 80, 160)
SCORES = LightConfig().estimation
METHODS = {"base": SCORES.base_score, "module": SCORES.module_score, "rank": SCORES.rank_score}
KINDS = ("heads", "neurons", "PEFT modules", "ranks")
Row = dict[str, Any]

WINDOWS: dict[str, Callable[[int, int], float]] = {
    "all": lambda step, length: 1.0,
    "second half": lambda step, length: float(step >= length // 2),
    "forgetting 10": lambda step, length: 0.5 ** ((length - 1 - step) / 10),
    "forgetting 20": lambda step, length: 0.5 ** ((length - 1 - step) / 20),
}
"""Weight of a step, from 0, in the scores after `length` steps; forgetting halves it every so many steps."""


class Record(TrainerCallback):
    """What each of the first steps of a run adds to the statistics; then the run stops."""

    def __init__(self, model: PeftModel, steps: int) -> None:
        self._estimator = Estimator(model, dataclasses.replace(SCORES, steps=steps))
        self._steps: list[dict[str, Tensor]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Put the gates in."""
        self._estimator.attach()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the sums of this step alone."""
        self._estimator.end_step(args.learning_rate)
        sums, header = self._estimator.state()
        self._steps.append({name: values.clone() for name, values in sums.items()})
        self._estimator.restore({name: torch.zeros_like(values) for name, values in sums.items()}, header)
        if len(self._steps) == self._estimator.config.planned_steps:
            self._estimator.detach()
            control.should_training_stop = True

    def plan(self, length: int, window: str) -> Plan:
        """The plan after `length` steps, each with its weight."""
        weights = [WINDOWS[window](step, length) for step in range(length)]
        sums: dict[str, Tensor] = {}
        for name in self._steps[0]:
            values = torch.stack([one[name] for one in self._steps[:length]])
            sums[name] = torch.tensordot(torch.tensor(weights), values, 1)
        self._estimator.restore(sums, {"steps": length})
        return make_plan(self._estimator.scores(), self._estimator.anatomy, LightConfig().budget)


def recorded(setting: Setting) -> Record:
    """The first steps of the plain run of this setting, in its order and with its schedule."""
    model = setting.load_model()
    record = Record(model, LENGTHS[-1])
    with tempfile.TemporaryDirectory() as folder:
        prepare(setting, model, None, Path(folder), progress=False, callbacks=[record]).train()
    return record


def row(records: Sequence[Record], length: int, window: str) -> Row:
    """Means over the seeds, or over pairs of them, of the overlap and of Cohen's κ, per kind of unit."""
    plans = [record.plan(length, window) for record in records]
    longest = [record.plan(LENGTHS[-1], window) for record in records]
    pairs = itertools.combinations(plans, 2)
    return {
        "window": window,
        "steps": length,
        "halves": means([plan.evidence.agreements for plan in plans if plan.evidence is not None]),
        "longest": means([agreements(METHODS, *pair) for pair in zip(plans, longest, strict=True)]),
        "seeds": means([agreements(METHODS, *pair) for pair in pairs]),
    }


def means(found: Sequence[Sequence[Agreement]]) -> dict[str, dict[str, float]] | None:
    """Overlap and κ per kind; None where a plan has too few steps for them."""
    if not all(found):
        return None
    return {
        kind: {
            "overlap": round(statistics.fmean(one.share for one in of_kind), 3),
            "kappa": round(statistics.fmean(one.above_chance for one in of_kind), 3),
        }
        for kind in KINDS
        for of_kind in [[one for each in found for one in each if one.kind == kind]]
    }


def table(rows: Sequence[Row], against: str, measure: str) -> str:
    """A markdown table of one comparison."""
    lines = [f"| steps | scored | {' | '.join(KINDS)} |", "|---|---|" + "---|" * len(KINDS)]
    for one in rows:
        found = one[against]
        cells = [f"{found[kind][measure]:.2f}" if found else "–" for kind in KINDS]
        lines.append(f"| {one['steps']} | {one['window']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(grid: QualityGrid, data: Path) -> Row:
    """All rows, and where they come from; of the grid's first model and task."""
    model, task = next(iter(grid.models)), next(iter(grid.tasks))
    rows = grid.tasks[task].load(data)
    keys = [CellKey(model, task, PLAIN, seed) for seed in grid.seeds]
    records = [recorded(grid.setting(key, rows, None)) for key in keys]
    found = [row(records, length, window) for window in WINDOWS for length in LENGTHS]
    return {"settings": [grid.record(key) for key in keys], "rows": found, "environment": environment()}


def read_grid(path: Path) -> QualityGrid:
    """The grid of a configuration file."""

    def given(grid: QualityGrid) -> QualityGrid:
        return grid

    found: QualityGrid = run_with_options(given, "bench quality", ["--config", str(path)])
    return found


def main() -> None:
    """Measure and write, or only print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, default=Path(), help="folder that the grid's data starts from")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--out", type=result_file)
    goal.add_argument("--table", type=Path, metavar="FILE", help="only print what was measured")
    options = parser.parse_args()
    if options.out:
        save_result(options.out, measured(read_grid(options.config), options.data))
    rows = read_json(options.out or options.table)["rows"]
    for against, measure in itertools.product(("halves", "longest", "seeds"), ("overlap", "kappa")):
        print(f"\n{against}, {measure}\n\n{table(rows, against, measure)}")


if __name__ == "__main__":
    main()
