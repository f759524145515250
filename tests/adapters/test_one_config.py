"""One configuration object for many models: each is a run of its own, and the object stays as it was."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from tests.support.models import load_base, save_base
from tests.support.plans import random_scores

import lightpeft
from lightpeft import BottleneckConfig, Budget, find_anatomy, make_plan
from lightpeft.adapters import find_modules
from lightpeft.wrapping import added_parameters

CONFIGS = {
    "lora": LoraConfig(r=4, target_modules=["query", "value", "output.dense"], task_type="SEQ_CLS"),
    "rank pattern": LoraConfig(
        r=4, target_modules=["query", "value"], rank_pattern={"query": 2}, task_type="SEQ_CLS"
    ),
    "bottleneck": BottleneckConfig(form="sequential", size=4, task_type="SEQ_CLS"),
    "ia3": IA3Config(
        target_modules=["key", "output.dense"], feedforward_modules=["output.dense"], task_type="SEQ_CLS"
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_configuration_serves_many_models(kind: str, tmp_path: Path) -> None:
    """Nothing of a cut is written into the object that the user made."""
    base, config = save_base("bert", tmp_path), copy.deepcopy(CONFIGS[kind])
    counts = []
    for _ in range(4):
        model = get_peft_model(load_base(base), config)
        before = copy.deepcopy(config.to_dict())
        modules = find_modules(model)
        counts.append(len(list(added_parameters(model))))
        scores = dataclasses.replace(
            random_scores(model),
            ranks={module.name: torch.arange(float(module.rank)) for module in modules},
            modules={module.name: float(i) for i, module in enumerate(modules)},
        )
        budget = Budget(modules=0.5 if len(modules) > 1 else 0, ranks=0.5 if modules else 0)
        lightpeft.cut(model, make_plan(scores, find_anatomy(model), budget))
        assert config.to_dict() == before
    assert len(set(counts)) == 1
    assert config.target_modules == CONFIGS[kind].target_modules
