"""What a skipped block saves: MiniLM with the same number of heads or neurons cut evenly, or as whole blocks.

python benchmarks/whole_blocks.py --out benchmarks/results/whole-blocks.json
"""

import argparse
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from lightpeft import Budget, Scores, cut, find_anatomy, make_plan
from lightpeft.anatomy import Anatomy
from lightpeft.bench import result_file, save_result
from lightpeft.report import environment
from lightpeft.runs import MINILM, measure_speed, resolve_model

SHARE = 1 / 3
LINEARS = r".*layer\.\d+\..*(query|key|value|dense)"
NOTHING: dict[str, Any] = {"heads": 0.0, "neurons": 0.0, "modules": 0.0, "ranks": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=result_file, required=True)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    models = {"plain": fresh()}
    for kind in ("heads", "neurons"):
        models[f"1/3 of the {kind}, evenly"] = lighter(kind, whole=False)
        models[f"1/3 of the {kind}, whole blocks"] = lighter(kind, whole=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (32, 32), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(32).long()}
    speeds = measure_speed(models, batch, options.repeats)
    base = speeds["plain"]
    assert base.inference is not None
    result = {}
    for name, speed in speeds.items():
        assert speed.inference is not None
        result[name] = {
            "encoder_parameters": find_anatomy(models[name]).parameters,
            "train_step": speed.train_step.median / base.train_step.median,
            "inference": speed.inference.median / base.inference.median,
        }
        print(f"| {name} | {result[name]['train_step']:.2f} | {result[name]['inference']:.2f} |")
    save_result(options.out, {"ratios": result, "repeats": options.repeats, "environment": environment()})


def fresh() -> PeftModel:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(resolve_model(MINILM))
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS))
    assert isinstance(model, PeftModel)
    return model


def lighter(kind: str, *, whole: bool) -> PeftModel:
    """A third of the units gone, alike in every layer or all of every third layer."""
    model = fresh()
    anatomy = find_anatomy(model)
    scope = "global" if whole else "layer"
    budget = Budget(**NOTHING | {kind: SHARE, f"{kind}_scope": scope}, min_heads=0, min_neurons=0)
    cut(model, make_plan(layer_scores(anatomy), anatomy, budget))
    return model


def layer_scores(anatomy: Anatomy) -> Scores:
    """Every third layer worth nothing, the units of the others alike."""
    worth = [float(layer.index % 3 != 2) for layer in anatomy.layers]
    names = [name for layer in anatomy.layers for units in layer.units for name in units.linears]
    return Scores(
        heads=tuple(w + torch.zeros(layer.heads) for w, layer in zip(worth, anatomy.layers, strict=True)),
        neurons=tuple(w + torch.zeros(layer.neurons) for w, layer in zip(worth, anatomy.layers, strict=True)),
        ranks={name: torch.ones(8) for name in names},
        modules=dict.fromkeys(names, 1.0),
        steps=0,
        methods={"base": "by hand", "module": "by hand", "rank": "by hand"},
    )


if __name__ == "__main__":
    main()
