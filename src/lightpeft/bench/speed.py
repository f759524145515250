"""`bench speed`: what a step, an inference and memory cost, plain and light."""

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor

from lightpeft.anatomy import find_anatomy
from lightpeft.config import LightConfig
from lightpeft.estimation import estimate
from lightpeft.planning import make_plan
from lightpeft.report import environment
from lightpeft.run_config import TrainingConfig
from lightpeft.runs import Setting, Speed, measure_speed
from lightpeft.runs.measure import inference_action, interleaved_seconds
from lightpeft.surgery import cut, parameter_counts

QUERY_VALUE = "plain LoRA, query and value"
LIGHT = "light, after the cut"


@dataclass(frozen=True)
class SpeedBenchmark:
    """What is compared."""

    setting: Setting
    light: LightConfig
    estimation_steps: int = 20
    """Steps before the cut; a speed does not need more."""

    repeats: int = 15


def run_speed(benchmark: SpeedBenchmark) -> dict[str, Any]:
    """Measure and return JSON values: per method numbers, ratios to plain PEFT.

    The light model is estimated and cut on the task's own data, so its plan is a real one.
    """
    setting = benchmark.setting
    baseline = f"plain {setting.peft.title}"
    models = {baseline: setting.load_model()}
    if setting.peft.form == "lora" and setting.peft.lora.targets == "all":
        narrow = dataclasses.replace(setting.peft.lora, targets="query-value")
        peft = dataclasses.replace(setting.peft, lora=narrow)
        models[QUERY_VALUE] = dataclasses.replace(setting, peft=peft).load_model()
    models[LIGHT] = _cut_model(benchmark)
    batch = next(batches(setting, setting.validation))
    estimate, prefixes = (baseline, benchmark.light.estimation), {LIGHT: benchmark.light.prefix}
    speeds = measure_speed(models, batch, benchmark.repeats, estimate, prefixes)
    methods = {name: _numbers(speed, models.get(name)) for name, speed in speeds.items()}
    return {
        "methods": methods,
        "ratios": {name: _ratios(numbers, methods[baseline]) for name, numbers in methods.items()},
        "batch": {"examples": len(batch["input_ids"]), "tokens": int(batch["input_ids"].shape[1])},
        "repeats": benchmark.repeats,
        "model": setting.model,
        "task": setting.spec.name,
        "light": benchmark.light.to_dict(),
        "environment": environment(),
    }


def batches(setting: Setting, rows: Dataset) -> Iterator[dict[str, Tensor]]:
    """Padded batches in order, over and over."""
    collate, size = setting.collator, setting.training.batch_size
    while True:
        for start in range(0, len(rows), size):
            chosen = [rows[i] for i in range(start, min(start + size, len(rows)))]
            yield {name: torch.as_tensor(value) for name, value in collate(chosen).items()}


def inference_share(
    model: PeftModel, plain: PeftModel, some: Iterable[Mapping[str, Tensor]], repeats: int
) -> float:
    """Seconds of a forward pass over plain PEFT's, in turns; the median over some batches.

    Args:
        model, plain: on one device.
        repeats: of each, at least 2; medians count.
    """
    shares = []
    device = next(plain.parameters()).device
    for batch in some:
        here = {name: value.to(device) for name, value in batch.items()}
        actions = {name: inference_action(one, here) for name, one in (("own", model), ("plain", plain))}
        spread = interleaved_seconds(actions, repeats, device)
        shares.append(spread["own"].median / spread["plain"].median)
    return statistics.median(shares)


def _cut_model(benchmark: SpeedBenchmark) -> PeftModel:
    setting = benchmark.setting
    model = setting.load_model()
    training: TrainingConfig = setting.training
    scores = estimate(
        model,
        batches(setting, setting.train),
        dataclasses.replace(benchmark.light.estimation, steps=benchmark.estimation_steps),
        learning_rate=training.learning_rate,
    )
    plan = make_plan(scores, find_anatomy(model), benchmark.light.budget)
    cut(model, plan, scores=scores, config=benchmark.light.surgery)
    return model


def _numbers(speed: Speed, model: PeftModel | None) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "train_step_seconds": dataclasses.asdict(speed.train_step),
        "train_peak_bytes": speed.train_peak_bytes,
        "inference_seconds": None if speed.inference is None else dataclasses.asdict(speed.inference),
        "inference_peak_bytes": speed.inference_peak_bytes,
    }
    if model is not None:
        encoder, peft = parameter_counts(model)
        numbers |= {"encoder_parameters": encoder, "peft_parameters": peft}
    return numbers


def _ratios(numbers: dict[str, Any], baseline: dict[str, Any]) -> dict[str, float]:
    """Every number over the baseline's; times by their medians."""
    ratios = {}
    for name, value in numbers.items():
        if value is None:
            continue
        below = baseline[name]
        both = (value["median"], below["median"]) if isinstance(value, dict) else (value, below)
        ratios[name] = both[0] / both[1]
    return ratios
