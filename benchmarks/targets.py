"""Targets of time: what was predicted, what is measured, and what it costs in accuracy.

python benchmarks/targets.py --data FOLDER/sst2 --out benchmarks/results/targets
python benchmarks/targets.py --data FOLDER/sst2 --out DIR --only minilm --seed 0 --steps 40 --rows 400
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel

from lightpeft import LightConfig, Target
from lightpeft.bench import save_result, select_rows
from lightpeft.bench.speed import batches, inference_share
from lightpeft.cli.tasks import TaskOptions
from lightpeft.outputs import check_room
from lightpeft.report import environment
from lightpeft.run_config import LoraOptions, PeftOptions, TrainingConfig
from lightpeft.runs import Outcome, Setting, fit, make_setting
from lightpeft.runs.minilm import minilm_path
from lightpeft.tasks import TaskData

BASES = Path("~/.cache/lightpeft-bases").expanduser()
MODELS: dict[str, dict[str, Any]] = {
    "minilm": {"path": minilm_path, "rows": 6920, "epochs": 3, "learning_rate": 1e-3},
    "mpnet": {
        "path": lambda: BASES / "all-mpnet-base-v2",
        "rows": 2000,
        "epochs": 3,
        "learning_rate": 5e-4,
    },
}
METHODS: dict[str, LightConfig | None] = {
    "plain": None,
    "default": LightConfig(),
    "inference-0.5": LightConfig(target=Target(inference=0.5)),
    "training-0.45": LightConfig(target=Target(training=0.45)),
}
SEEDS = (0, 1)
MIN_WORDS, REPEATS = 12, 15


def main() -> None:
    parser = cell_options(__doc__, "folder with the files of SST-2", list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    check_room(options.out)
    for name, seed in chosen_cells(options, list(MODELS)):
        cells(name, seed, options)


def cell_options(description: str | None, data: str, names: list[str]) -> argparse.ArgumentParser:
    """The options of a benchmark that runs cells by name and seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=names)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--rows", type=int, help="training rows, instead of the cell's own number")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of whole epochs")
    return parser


def chosen_cells(options: argparse.Namespace, names: list[str]) -> Iterator[tuple[str, int]]:
    """Names and seeds to run."""
    for name in [options.only] if options.only else names:
        for seed in SEEDS if options.seed is None else [options.seed]:
            yield name, seed


def cells(name: str, seed: int, options: argparse.Namespace) -> None:
    """Every method of one model and seed; finished ones are kept."""
    for method in options.methods:
        path = options.out / f"{name}-{method}-{seed}.json"
        if path.is_file():
            continue
        row = MODELS[name]
        task = TaskOptions("glue/sst2", options.data, ()).load()
        training = training_of(row["epochs"], row["learning_rate"], seed, options)
        setting = setting_of(row["path"](), task, training, options, row["rows"])
        with tempfile.TemporaryDirectory() as folder:
            outcome = fit(setting, METHODS[method], Path(folder), progress=False)
        value = numbers(outcome, setting) | {"model": name, "method": method, "seed": seed}
        save_result(path, value | {"environment": environment()})
        print(path, {key: value[key] for key in ("main", "target", "inference_share")}, flush=True)


def setting_of(
    base: Path | str,
    task: TaskData,
    training: TrainingConfig,
    options: argparse.Namespace,
    rows: int,
    min_words: int = MIN_WORDS,
) -> Setting:
    """LoRA on all six linears, on some rows of a task."""
    chosen = select_rows(task, min_words, options.rows or rows)
    return make_setting(str(base), chosen, training, PeftOptions("lora", LoraOptions()))


def training_of(
    epochs: float, learning_rate: float, seed: int, options: argparse.Namespace
) -> TrainingConfig:
    """The training of a cell."""
    return TrainingConfig(
        epochs=epochs,
        max_steps=options.steps,
        learning_rate=learning_rate,
        batch_size=32,
        max_length=128,
        seed=seed,
    )


def numbers(outcome: Outcome, setting: Setting) -> dict[str, Any]:
    """What a run reached, and its share of plain PEFT's inference time."""
    plan = None if outcome.light is None else outcome.light.plan
    target = None if plan is None or plan.target is None else plan.target
    return {
        "main": outcome.main,
        "target": None
        if target is None or outcome.light is None
        else {
            "quantity": target.quantity,
            "share": target.share,
            "cuts": target.cuts,
            "predicted": target.predicted,
            "measured": outcome.light.measured,
        },
        "frozen_layers": None if plan is None else plan.frozen_layers,
        "kept": None if plan is None else {kind: count.kept for kind, count in plan.counts._asdict().items()},
        "inference_share": inference_share_of(outcome.model, setting),
    }


def inference_share_of(model: PeftModel, setting: Setting, repeats: int = REPEATS) -> float:
    """Of plain PEFT's inference time, over three batches."""
    some = itertools.islice(batches(setting, setting.validation), 3)
    return inference_share(model, setting.load_model(), some, repeats)


if __name__ == "__main__":
    main()
