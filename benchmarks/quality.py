"""Quality of methods on a task: configurations in, one JSON result a run out; finished runs are kept.

python benchmarks/quality.py benchmarks/configs/sst2-minilm.yaml --out benchmarks/results/sst2-minilm
python benchmarks/quality.py benchmarks/configs/sst2-minilm.yaml --out DIR --only default --seed 0
python benchmarks/quality.py benchmarks/configs/stories-lm.yaml --model FOLDER --data FOLDER --out DIR
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from lightpeft.bench import save_result, select_rows
from lightpeft.cli.tasks import TaskOptions
from lightpeft.config import Budget, EstimationConfig, LightConfig, PrefixConfig, SurgeryConfig, Target
from lightpeft.files import read_json
from lightpeft.report import environment
from lightpeft.report.units import lower_is_better
from lightpeft.run_config import BottleneckOptions, LoraOptions, PeftOptions, TrainingConfig
from lightpeft.runs import fit, make_setting
from lightpeft.tasks import TaskData


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with the task's files")
    parser.add_argument("--model", help="folder or hub name, instead of the configuration's")
    parser.add_argument("--only", help="one method of the configuration")
    parser.add_argument("--seed", type=int, help="one seed of the configuration")
    parser.add_argument("--table", action="store_true", help="only print the table of finished runs")
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    if options.model is not None:
        config["model"] = options.model
    if not options.table:
        run_all(config, options)
    print(table(config, options.out))


def run_all(config: dict[str, Any], options: argparse.Namespace) -> None:
    methods = [options.only] if options.only else list(config["methods"])
    seeds = config["seeds"] if options.seed is None else [options.seed]
    task = task_options(config, options.data).load()
    task = select_rows(task, config.get("min_words", 0), config.get("train_rows"))
    for seed in seeds:
        for method in methods:
            target = options.out / f"{method}-{seed}.json"
            if not target.is_file():
                save_result(target, run_one(config, task, method, seed))


def task_options(config: dict[str, Any], data: Path | None) -> TaskOptions:
    """A known task, or one on columns of your own that the configuration names."""
    objective = config.get("objective", "sequence-classification")
    return TaskOptions(config["task"], data, tuple(config.get("text", ())), objective=objective)


def run_one(config: dict[str, Any], task: TaskData, method: str, seed: int) -> dict[str, Any]:
    values = config["methods"][method]
    training = TrainingConfig(**config["training"] | values.get("training", {}), seed=seed)
    setting = make_setting(config["model"], task, training, peft_options(config | values))
    light = light_config(values, seed)
    with tempfile.TemporaryDirectory() as folder:
        outcome = fit(setting, light, Path(folder), progress=False)
    report = outcome.light.report if outcome.light is not None else None
    return {
        "method": method,
        "seed": seed,
        "metrics": outcome.metrics,
        "main": outcome.main,
        "metric_name": "+".join(task.spec.main),
        "seconds": outcome.seconds,
        "estimation_steps": outcome.light.plan.estimation_steps if outcome.light is not None else None,
        "cut": None if report is None else dataclasses.asdict(report),
        "training_rows": len(setting.train),
        "validation_rows": len(setting.validation),
        "config": config,
        "light": None if light is None else light.to_dict(),
        "environment": environment(),
    }


def peft_options(values: dict[str, Any]) -> PeftOptions:
    """The form of PEFT of a configuration, which a method of it may change."""
    return PeftOptions(
        values.get("peft", "lora"),
        LoraOptions(**values.get("lora", {})),
        BottleneckOptions(**values.get("bottleneck", {})),
    )


def light_config(values: dict[str, Any], seed: int) -> LightConfig | None:
    """None for plain PEFT; else a preset with changes, group by group; random scores follow the seed."""
    if values["preset"] == "plain":
        return None
    preset = LightConfig.preset(values["preset"])
    return LightConfig(
        EstimationConfig(
            **dataclasses.asdict(preset.estimation) | {"seed": seed} | values.get("estimation", {})
        ),
        Budget(**dataclasses.asdict(preset.budget) | values.get("budget", {})),
        SurgeryConfig(**dataclasses.asdict(preset.surgery) | values.get("surgery", {})),
        PrefixConfig(**dataclasses.asdict(preset.prefix) | values.get("prefix", {})),
        Target(**values.get("target", {})),
        values.get("learning_rate_factor", preset.learning_rate_factor),
        values.get("restart_schedule", preset.restart_schedule),
    )


def table(config: dict[str, Any], folder: Path) -> str:
    """Finished runs as a markdown table: mean and standard deviation over seeds."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        run = read_json(file)
        runs[run["method"]].append(run)
    lines = ["| method | seeds | metric | per seed | encoder | PEFT |", "|---|---|---|---|---|---|"]
    lines += [table_row(method, runs[method]) for method in config["methods"] if method in runs]
    return "\n".join(lines)


def table_row(method: str, runs: list[dict[str, Any]]) -> str:
    # A loss as it is, a share in per cent. Early results are all of shares and do not say so.
    scale, digits = (1, 3) if lower_is_better(runs[0].get("metric_name", "")) else (100, 1)
    values = [scale * run["main"] for run in sorted(runs, key=lambda run: run["seed"])]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    cuts = [run["cut"] for run in runs if run["cut"]]
    encoder = statistics.fmean(c["encoder_after"] / c["encoder_before"] for c in cuts) if cuts else 1.0
    peft = statistics.fmean(c["peft_after"] / c["peft_before"] for c in cuts) if cuts else 1.0
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    mean = f"{statistics.fmean(values):.{digits}f}{spread}"
    return f"| {method} | {len(values)} | {mean} | {each} | {encoder:.2f} | {peft:.2f} |"


if __name__ == "__main__":
    main()
