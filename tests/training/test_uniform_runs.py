"""Uniform runs: what stays and what is not compensated is said before the first step, or refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.forms import FORM_ROWS
from tests.support.models import load_base, save_base
from tests.support.probing import agree, outputs
from tests.support.runs import DEFAULT, NoStep, fresh_model, trainer
from tests.support.zoo import BY_NAME
from transformers import AutoModelForSequenceClassification

import lightpeft
from lightpeft import Budget, ConfigError, LightConfig, PlanError, SurgeryConfig, Target
from lightpeft.training.session import LightSession
from lightpeft.training.targeting import Pace, Targeting

UNIFORM = replace(DEFAULT, budget=Budget(uniform=True, layers=1 / 3))


@pytest.mark.parametrize("name", ["bert", "distilbert"])
@pytest.mark.parametrize("target", [False, True], ids=["shares", "target"])
def test_what_a_run_leaves_is_an_ordinary_checkpoint(name: str, target: bool, tmp_path: Path) -> None:
    base, light = save_base(name, tmp_path / "base"), UNIFORM
    if target:
        light = replace(DEFAULT, budget=Budget(uniform=True), target=Target(parameters=0.6, cuts="mixed"))
    run = trainer(base, tmp_path / "run", light, model=fresh_model(base))
    run.train()
    folder = lightpeft.save(run.model, tmp_path / "light")
    lightpeft.export_transformers(folder, tmp_path / "out")
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    batch = run.data_collator([run.eval_dataset[i] for i in range(4)])
    batch.pop("labels")
    agree(outputs(small, batch), outputs(run.model, batch))


def said(name: str, config: LightConfig, caplog: pytest.LogCaptureFixture, target: bool = False) -> str:
    """What is said before a run."""
    session = LightSession(config)
    if target:
        session._targeting = Targeting(config, Pace(Path()), 100, 0, torch.device("cpu"))
    with caplog.at_level("INFO", logger="lightpeft"):
        session.check(BY_NAME[name].with_lora("eager"), 100)
    return caplog.text


@pytest.mark.parametrize(
    ("name", "places"), [("mistral", 4), ("llama", 4), ("qwen3", 2), ("t5", 4), ("bert", 0), ("smollm3", 0)]
)
def test_where_nothing_can_be_compensated_is_said_before_the_run(
    name: str, places: int, caplog: pytest.LogCaptureFixture
) -> None:
    text = said(name, LightConfig(budget=Budget(uniform=True)), caplog)
    assert (f"not compensated at {places} output projections" in text) == bool(places)
    assert ("not compensated" in text) == bool(places)


def test_nothing_of_it_is_said_where_it_does_not_matter(caplog: pytest.LogCaptureFixture) -> None:
    off = SurgeryConfig(compensate=False)
    assert "not compensated" not in said(
        "mistral", LightConfig(budget=Budget(uniform=True), surgery=off), caplog
    )
    assert "not compensated" not in said("mistral", LightConfig(budget=Budget()), caplog)
    with_target = LightConfig(budget=Budget(uniform=True), target=Target(parameters=0.5))
    assert "not compensated" not in said("mistral", with_target, caplog, target=True)  # the plan is not known


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_forms_that_cannot_be_merged_are_refused(form: str, tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    model = FORM_ROWS[form].put_on(BY_NAME["bert"], load_base(base))
    with pytest.raises(ConfigError, match=r"budget\.uniform .* bottleneck cannot be merged"):
        trainer(base, tmp_path / "run", UNIFORM, model=model, kind=NoStep).train()


def test_a_model_of_which_nothing_can_go_is_refused() -> None:
    with pytest.raises(PlanError, match=r"budget\.uniform leaves nothing of bloom to cut"):
        LightSession(LightConfig(budget=Budget(uniform=True))).check(BY_NAME["bloom"].with_lora("eager"), 100)
