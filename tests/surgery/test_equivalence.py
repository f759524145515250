"""gated = cut = saved and loaded = merged: every architecture, attention, padding and way to fold."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.models import (
    NAMES,
    assert_identical,
    assert_same,
    gated,
    load_base,
    make_batch,
    outputs,
    save_base,
    with_lora,
)
from tests.support.plans import UNEVEN, plan_gates, random_scores
from torch import Tensor

import lightpeft
from lightpeft import Plan, SurgeryConfig, find_anatomy, make_plan


@dataclass(frozen=True)
class Case:
    """A model after its cut, and what its gated original computed."""

    model: PeftModel
    plan: Plan
    batch: dict[str, Tensor]
    expected: dict[str, Tensor]
    attention: str


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_base(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str, attention: str, padded: bool, source: str, fold: bool, bases: dict[str, Path]) -> Case:
    model = with_lora(load_base(bases[name], attention=attention))
    batch = make_batch(name, padded=padded)
    scores = random_scores(model, gates=source == "mask", means=True)
    plan = make_plan(scores, find_anatomy(model), UNEVEN)
    with gated(model.get_base_model(), plan_gates(plan, scores.gates, ranks=not fold)):
        expected = outputs(model, batch)
    assert not torch.allclose(expected["logits"], outputs(model, batch)["logits"], atol=1e-3)
    config = SurgeryConfig(fold_removed=fold, compensate=False)
    lightpeft.cut(model, plan, scores=scores, batch=batch, config=config)
    return Case(model, plan, batch, expected, attention)


@pytest.mark.parametrize("fold", [True, False], ids=["fold", "drop"])
@pytest.mark.parametrize("source", ["fisher", "mask"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gated_cut_loaded_and_merged_agree(case: Case, tmp_path: Path) -> None:
    assert_same(outputs(case.model, case.batch), case.expected)
    folder = lightpeft.save(case.model, tmp_path / "light")
    loaded = lightpeft.load(folder, attn_implementation=case.attention)
    assert_same(outputs(loaded, case.batch), case.expected)
    assert_identical(loaded.state_dict(), case.model.state_dict())
    merged = copy.deepcopy(loaded).merge_and_unload()
    assert_same(outputs(merged, case.batch), case.expected)
