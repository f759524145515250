"""Several adapters on one model: the active one is estimated, cut and saved; the others follow the base."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.support.forms import enliven
from tests.support.models import (
    assert_identical,
    assert_same,
    load_base,
    make_batch,
    outputs,
    save_base,
    snapshot,
)
from tests.support.runs import Sentences, arguments
from tests.support.watching import InjectedError, differences, explode, patch, watched

import lightpeft
from lightpeft import (
    BottleneckConfig,
    Budget,
    EstimationConfig,
    LightConfig,
    LightTrainer,
    find_anatomy,
    make_plan,
)
from lightpeft.adapters import find_modules
from lightpeft.surgery import record_of

BATCH = make_batch("bert", labels=True)
LINEARS = ["query", "value", "attention.output.dense", "intermediate.dense"]
BUDGET = Budget(heads=0.4, neurons=0.4, modules=0.3, ranks=0.4, heads_scope="global", neurons_scope="global")
LIGHT = LightConfig(estimation=EstimationConfig(steps=3), budget=BUDGET, learning_rate_factor=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


def lora(rank: int, targets: list[str], **options: Any) -> LoraConfig:
    return LoraConfig(
        r=rank, target_modules=targets, task_type=options.pop("task_type", "SEQ_CLS"), **options
    )


def model_with_both(base: Path, active: str = "mine", **options: Any) -> PeftModel:
    """`theirs` has other ranks and partly other linears than `mine`; both are alive."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(
            load_base(base), lora(3, ["query", "key", "output.dense"], **options), "theirs"
        )
        model.add_adapter("mine", lora(4, LINEARS, **options))
        model.set_adapter(active)
        for adapter in ("theirs", "mine"):
            enliven(model, adapter)
    assert isinstance(model, PeftModel)
    return model


def scores_of(model: PeftModel) -> lightpeft.Scores:
    return lightpeft.estimate(model, [BATCH] * 2, EstimationConfig(steps=2))


def test_scores_are_of_the_active_adapter(base: Path) -> None:
    """As if the other were not there."""
    model, alone = model_with_both(base), model_with_both(base)
    alone.delete_adapter("theirs")
    alone.set_adapter("mine")
    found, expected = scores_of(model), scores_of(alone)
    assert found.ranks.keys() == expected.ranks.keys()
    assert {len(ranks) for ranks in found.ranks.values()} == {4}
    for name, ranks in expected.ranks.items():
        torch.testing.assert_close(found.ranks[name], ranks)
    assert found.modules == pytest.approx(expected.modules)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_others_follow_the_base_with_all_of_their_ranks(dora: bool, base: Path) -> None:
    model = model_with_both(base, use_dora=dora)
    plan = make_plan(scores_of(model), find_anatomy(model), BUDGET)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".theirs." in n}
    lightpeft.cut(model, plan, batch=BATCH)
    shared = [m.name for m in plan.removed_modules if m.name.endswith("query")]
    assert shared, "a module of mine should go where theirs stays"
    layer = model.get_base_model().get_submodule(shared[0])
    assert (list(layer.lora_A), list(layer.r), list(layer.lora_magnitude_vector)) == (
        (["theirs"], ["theirs"], ["theirs"] if dora else [])
    )
    after = {n: p for n, p in model.named_parameters() if ".theirs." in n}
    assert after.keys() == before.keys()
    for module in model.get_base_model().modules():
        if hasattr(module, "lora_A") and "theirs" in module.lora_A:
            inner = module.get_base_layer()
            assert module.lora_A["theirs"].weight.shape == (3, inner.in_features)
            assert module.lora_B["theirs"].weight.shape == (inner.out_features, 3)
    values = "lora_A.theirs.weight"
    name = f"base_model.model.bert.encoder.layer.0.attention.self.query.{values}"
    assert torch.equal(after[name], before[name]), "a cut of outputs leaves A alone"
    mine = outputs(model, BATCH)["logits"]
    model.set_adapter("theirs")
    theirs = outputs(model, BATCH)["logits"]
    assert torch.isfinite(theirs).all()
    assert not torch.allclose(mine, theirs)
    assert {m.rank for m in find_modules(model)} == {3}
    model.train()
    model(**BATCH).loss.backward()
    model.delete_adapter("mine")
    assert_same({"logits": outputs(model, BATCH)["logits"]}, {"logits": theirs})


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_others_compute_what_they_did_on_a_base_that_only_lost_units(dora: bool, base: Path) -> None:
    """Nothing of mine goes, so nothing is folded: theirs is as if the base had been cut under it alone."""
    model, alone = model_with_both(base, use_dora=dora), model_with_both(base, "theirs", use_dora=dora)
    budget = Budget(heads=0.4, neurons=0.4, modules=0, ranks=0)
    config = lightpeft.SurgeryConfig(compensate=False)
    scores = scores_of(model_with_both(base, use_dora=dora))
    plan = make_plan(scores, find_anatomy(model), budget)
    lightpeft.cut(model, plan, config=config)
    modules = find_modules(alone)
    theirs = lightpeft.Scores(
        **vars(scores)
        | {"ranks": {m.name: torch.ones(m.rank) for m in modules}, "modules": {m.name: 1.0 for m in modules}}
    )
    lightpeft.cut(alone, make_plan(theirs, find_anatomy(alone), budget), config=config)
    model.set_adapter("theirs")
    assert_same(outputs(model, BATCH), outputs(alone, BATCH))


def test_the_active_one_is_saved_alone_and_loads(base: Path, tmp_path: Path) -> None:
    model = model_with_both(base)
    lightpeft.cut(model, make_plan(scores_of(model), find_anatomy(model), BUDGET), batch=BATCH)
    record = record_of(model)
    assert record is not None
    assert record.adapter == "mine"
    folder = lightpeft.save(model, tmp_path / "light")
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "light.safetensors",
        "lightpeft_files.json",
        "pruning.json",
        "README.md",
    }
    loaded = lightpeft.load(folder)
    assert list(loaded.peft_config) == ["default"]
    assert_same(outputs(loaded, BATCH), outputs(model, BATCH))
    mine = {k.replace(".mine.", ".default."): v for k, v in model.state_dict().items() if ".mine." in k}
    assert_identical({k: v for k, v in loaded.state_dict().items() if k in mine}, mine)


@pytest.mark.parametrize("active", ["mine", "theirs"])
@pytest.mark.parametrize("where", ["cut.attach_record", "operation.scale_rows", "cut.largest_difference"])
def test_a_failed_cut_brings_both_back(
    where: str, active: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with_both(base, active, use_dora=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    plan = make_plan(scores_of(model), find_anatomy(model), BUDGET)
    tensors, seen = snapshot(model), watched(model, optimizer)
    patch(monkeypatch, f"lightpeft.surgery.{where}", explode)
    with pytest.raises(InjectedError):
        lightpeft.cut(model, plan, optimizer)
    assert not differences(watched(model, optimizer), seen)
    assert_identical(model.state_dict(), tensors)


def run_of(model: PeftModel, folder: Path, **options: Any) -> LightTrainer:
    return LightTrainer(
        model=model, args=arguments(folder, **options), train_dataset=Sentences(), light=LIGHT
    )


def test_a_run_says_which_is_estimated_and_leaves_a_checkpoint_of_it(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_with_both(base)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A.theirs" in n}
    run = run_of(model, tmp_path / "run")
    with caplog.at_level(logging.INFO, logger="lightpeft"):
        run.train()
    assert "the active adapter 'mine' is estimated and cut; theirs only follow the base's cut" in caplog.text
    for name, parameter in model.named_parameters():
        if name in before and ".query." in name:
            assert torch.equal(parameter, before[name])
    run.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "mine").exists()
    assert not (tmp_path / "final" / "theirs").exists()
    assert_same(outputs(lightpeft.load(tmp_path / "final"), BATCH), outputs(model, BATCH))


@pytest.mark.parametrize("stopped", [2, 6], ids=["while estimating", "after the cut"])
def test_such_a_run_resumes(stopped: int, base: Path, tmp_path: Path) -> None:
    whole = model_with_both(base)
    run_of(whole, tmp_path / "whole").train()
    options = {"save_strategy": "steps", "save_steps": stopped}
    run_of(model_with_both(base), tmp_path / "run", **options).train()
    resumed = model_with_both(base)
    run = run_of(resumed, tmp_path / "run")
    run.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stopped}"))
    mine = {k: v for k, v in whole.state_dict().items() if ".mine." in k}
    assert_identical({k: v for k, v in resumed.state_dict().items() if ".mine." in k}, mine)
    folder = lightpeft.save(resumed, tmp_path / "light")
    assert_same(outputs(lightpeft.load(folder), BATCH), outputs(whole, BATCH))


def test_two_bottlenecks(base: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(load_base(base), BottleneckConfig(size=5), "theirs")
        model.add_adapter("mine", BottleneckConfig(size=6, form="parallel"))
        model.set_adapter("mine")
        for adapter in ("theirs", "mine"):
            enliven(model, adapter)
    plan = make_plan(scores_of(model), find_anatomy(model), BUDGET)
    assert plan.removed_modules
    lightpeft.cut(model, plan, batch=BATCH)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert_same(outputs(loaded, BATCH), outputs(model, BATCH))
    model.set_adapter("theirs")
    assert {m.rank for m in find_modules(model)} == {5}
    assert torch.isfinite(outputs(model, BATCH)["logits"]).all()
