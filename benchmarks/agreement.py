"""How many steps scores need: how far the halves of one run agree, and how far other seeds' runs do.

python benchmarks/agreement.py --data DATA --out benchmarks/results/agreement.json

all-MiniLM-L6-v2 with LoRA on SST-2, batch 32, default scores and budget. Each seed draws its own adapter,
head and order of the data, estimates, and makes a plan after 2, 4, 8, ... steps. Both agreements are Cohen's
κ of the units that go: 0 is chance, 1 the same units.
"""

import argparse
import dataclasses
import itertools
import statistics
from pathlib import Path
from typing import Any

import torch

from lightpeft import EstimationConfig, LightConfig, Plan, make_plan
from lightpeft.bench import result_file, save_result
from lightpeft.cli.estimate import endless_batches
from lightpeft.estimation import Estimator
from lightpeft.planning import agreements
from lightpeft.report import environment
from lightpeft.run_config import PeftOptions, TrainingConfig
from lightpeft.runs import MINILM, Setting, make_setting
from lightpeft.tasks import load_task

METHODS = {"base": "fisher", "module": "activation", "rank": "taylor"}


def plans(setting: Setting, steps: list[int]) -> list[Plan]:
    """The plan after each of these numbers of steps of one run."""
    torch.manual_seed(setting.training.seed)
    model = setting.load_model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting.training.learning_rate)
    config = EstimationConfig(steps=steps[-1])
    estimator = Estimator(model, config)
    estimator.attach()
    model.train()
    found = []
    for batch in itertools.islice(endless_batches(setting), steps[-1]):
        model(**batch).loss.backward()
        estimator.end_step(setting.training.learning_rate)
        optimizer.step()
        optimizer.zero_grad()
        if estimator.steps in steps:
            found.append(make_plan(estimator.scores(), estimator.anatomy, LightConfig().budget))
    estimator.detach()
    return found


def by_kind(found: list[dict[str, float]]) -> dict[str, float]:
    """Means over runs or pairs of runs."""
    return {kind: round(statistics.fmean(one[kind] for one in found), 3) for kind in found[0]}


def kappas(one: Any) -> dict[str, float]:
    """κ per kind."""
    return {agreement.kind: agreement.above_chance for agreement in one}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=result_file, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 12, 16, 22, 32, 48, 64])
    options = parser.parse_args()
    training = TrainingConfig(learning_rate=1e-3, batch_size=32, max_length=64, group_by_length=True)
    task = load_task("glue/sst2", options.data)
    runs = []
    for seed in options.seeds:
        setting = make_setting(MINILM, task, dataclasses.replace(training, seed=seed), PeftOptions())
        runs.append(plans(setting, options.steps))
    rows = []
    for number, steps in enumerate(options.steps):
        made = [run[number] for run in runs]
        pairs = list(itertools.combinations(made, 2))
        rows.append(
            {
                "steps": steps,
                "scored_steps": made[0].evidence.scored_steps,
                "halves": by_kind([kappas(plan.evidence.agreements) for plan in made]) if steps > 2 else None,
                "seeds": by_kind([kappas(agreements(METHODS, *pair)) for pair in pairs]),
            }
        )
        print(rows[-1])
    value = {"seeds": options.seeds, "training": dataclasses.asdict(training), "rows": rows}
    save_result(options.out, value | {"environment": environment()})


if __name__ == "__main__":
    main()
