"""bfloat16, activation checkpointing and torch.compile, each with plain and light PEFT: step time and memory.

python benchmarks/speedups.py --out benchmarks/results/speedups.json \\
    --variants float32 bfloat16 checkpointed "bfloat16, checkpointed"
python benchmarks/speedups.py --out benchmarks/results/compile.json --variants float32 compiled
"""

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from lightpeft import EstimationConfig, LightConfig, cut, estimate, find_anatomy, make_plan
from lightpeft.bench import result_file, save_result
from lightpeft.estimation import Estimator
from lightpeft.memory import peak_bytes
from lightpeft.report import environment
from lightpeft.runs import MINILM, resolve_model, with_gates
from lightpeft.runs.measure import Action, interleaved_seconds, training_action

ROWS, TOKENS, ESTIMATION_STEPS = 32, 32, 4


@dataclass(frozen=True)
class Variant:
    """How a model is run."""

    autocast: bool = False
    is_checkpointed: bool = False
    is_compiled: bool = False

    def within(self, action: Action) -> Action:
        """The action in the variant's precision."""

        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext():
                action()

        return run


VARIANTS = {
    "float32": Variant(),
    "bfloat16": Variant(autocast=True),
    "checkpointed": Variant(is_checkpointed=True),
    "bfloat16, checkpointed": Variant(autocast=True, is_checkpointed=True),
    "compiled": Variant(is_compiled=True),
    "bfloat16, compiled": Variant(autocast=True, is_compiled=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=result_file, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    data, steps, owners = batch(), {}, {}
    for name in options.variants:
        for method, (model, step) in actions(VARIANTS[name], data).items():
            steps[f"{method}, {name}"], owners[f"{method}, {name}"] = step, model
    taken = interleaved_seconds(steps, options.repeats, torch.device("cpu"), warmup=2)
    unit = taken["plain, float32"].median
    rows = {
        name: {
            "seconds": spread.median,
            "low": spread.low,
            "high": spread.high,
            "ratio": spread.median / unit,
            # What compiled code makes inside is not seen.
            "peak_bytes": None if "compiled" in name else peak_bytes(owners[name], steps[name]),
        }
        for name, spread in taken.items()
    }
    for name, row in rows.items():
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f} MiB"
        print(f"{name:<40}{row['seconds'] * 1e3:6.0f} ms  {row['ratio']:.2f}  {memory}")
    save_result(options.out, {"batch": [ROWS, TOKENS], "rows": rows, "environment": environment()})


def actions(variant: Variant, data: dict[str, Tensor]) -> dict[str, tuple[PeftModel, Action]]:
    """A training step of the plain and of the cut model, and, but for compiled ones, one with gates in."""
    plain, light = made(variant), made(variant)
    config = LightConfig.preset("default")
    scores = []
    estimating = variant.within(
        lambda: scores.append(
            estimate(light, [data] * ESTIMATION_STEPS, EstimationConfig(steps=ESTIMATION_STEPS))
        )
    )
    estimating()
    plan = make_plan(scores[0], find_anatomy(light), config.budget)
    cut(light, plan, scores=scores[0], batch=data, config=config.surgery)
    found = {"plain": (plain, step_of(plain, variant, data)), "light": (light, step_of(light, variant, data))}
    if not variant.is_compiled:
        found["estimation"] = (plain, step_with_gates(plain, variant, data))
    return found


def made(variant: Variant) -> PeftModel:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(resolve_model(MINILM))
    targets = r".*layer\.\d+\..*(query|key|value|dense)"
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets))
    assert isinstance(model, PeftModel)
    if variant.is_checkpointed:
        model.enable_input_require_grads()
        model.get_base_model().gradient_checkpointing_enable()
    return model


def step_of(
    model: PeftModel, variant: Variant, data: dict[str, Tensor], before_step: Callable[[], None] | None = None
) -> Action:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    run = torch.compile(model) if variant.is_compiled else model
    return variant.within(training_action(run, data, optimizer, before_step))


def step_with_gates(model: PeftModel, variant: Variant, data: dict[str, Tensor]) -> Action:
    estimator = Estimator(model, EstimationConfig(steps=1))
    return with_gates(estimator, step_of(model, variant, data, lambda: estimator.end_step(0.0)))


def batch() -> dict[str, Tensor]:
    ids = torch.randint(1000, 8000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1::2, TOKENS // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(ROWS) % 2}


if __name__ == "__main__":
    main()
