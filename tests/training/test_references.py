"""A reference computed with the adapters switched off is another one after the cut: refused, never silent."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.models import load_base, make_batch, outputs, save_base, snapshot, with_lora
from tests.support.plans import random_plan
from tests.support.runs import DEFAULT, ESTIMATION, STEPS, fresh_model, trainer
from torch import nn
from transformers import Trainer

import lightpeft
from lightpeft import ConfigError, LightCallback

BATCH = make_batch("bert")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


@contextmanager
def layers_off(model: PeftModel) -> Iterator[None]:
    model.base_model.disable_adapter_layers()
    yield
    model.base_model.enable_adapter_layers()


@contextmanager
def as_reference(model: PeftModel) -> Iterator[None]:
    """TRL's way where an adapter is trained on: a copy of it under another name."""
    model.set_adapter("ref")
    yield
    model.set_adapter("default")


OFF: dict[str, Callable[[PeftModel], Any]] = {
    "disable_adapter": lambda model: model.disable_adapter(),
    "layers": layers_off,
}


class Preferring(Trainer):
    """A tiny DPO: the loss holds the policy against a reference, which `reference` makes of the model."""

    reference: Any = staticmethod(OFF["disable_adapter"])
    only_when_evaluating = False

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = {name: value for name, value in inputs.items() if name != "labels"}
        policy, labels = model(**given).logits.log_softmax(-1), inputs["labels"]
        if self.only_when_evaluating and model.training:
            return nn.functional.nll_loss(policy, labels)
        with torch.no_grad(), self.reference(model):
            reference = model(**given).logits.log_softmax(-1)
        gain = (policy - reference).gather(1, torch.stack([labels, 1 - labels], 1))
        loss = -nn.functional.logsigmoid(gain[:, 0] - gain[:, 1]).mean()
        return (loss, {"logits": policy}) if kwargs.get("return_outputs") else loss


@pytest.mark.parametrize("kind", [*OFF, "ref"])
def test_it_is_known_in_the_first_step(kind: str, base: Path, tmp_path: Path) -> None:
    model = fresh_model(base)
    if kind == "ref":
        model.add_adapter("ref", copy.deepcopy(model.peft_config["default"]))
    run = trainer(base, tmp_path, model=model, kind=Preferring, callbacks=[LightCallback(DEFAULT)])
    run.reference = OFF.get(kind, as_reference)
    before = snapshot(model)
    with pytest.raises(ConfigError, match=r"as a reference\. After the cut.*precompute_ref_log_probs=True"):
        run.train()
    assert run.state.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(hook, lightpeft.surgery.AdaptersOn) for hook in
                   model.get_base_model()._forward_pre_hooks.values())  # fmt: skip


def test_an_explicit_reference_is_fine(base: Path, tmp_path: Path) -> None:
    reference = fresh_model(base)

    @contextmanager
    def precomputed(model: PeftModel) -> Iterator[None]:
        forward, model.forward = model.forward, reference.forward
        yield
        model.forward = forward

    run = trainer(base, tmp_path, kind=Preferring, callbacks=[LightCallback(DEFAULT)])
    run.reference = precomputed
    run.train()
    assert run.state.global_step == STEPS


def test_one_that_is_made_when_evaluating_is_refused_after_the_cut(base: Path, tmp_path: Path) -> None:
    run = trainer(
        base,
        tmp_path,
        kind=Preferring,
        callbacks=[LightCallback(DEFAULT)],
        eval_strategy="steps",
        eval_steps=2,
    )
    run.only_when_evaluating = True
    with pytest.raises(ConfigError, match="was cut and is called with its adapters switched off"):
        run.train()
    assert run.state.global_step >= ESTIMATION


@pytest.mark.parametrize("kind", OFF)
def test_a_cut_model_and_a_loaded_one_refuse(kind: str, base: Path, tmp_path: Path) -> None:
    model = with_lora(load_base(base))
    with OFF[kind](model):
        outputs(model, BATCH)
    lightpeft.cut(model, random_plan(model))
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    for one in (model, loaded, copy.deepcopy(loaded)):
        expected = outputs(one, BATCH)["logits"]
        with pytest.raises(ConfigError, match="no longer the base"), OFF[kind](one):
            outputs(one, BATCH)
        one.base_model.enable_adapter_layers()
        assert torch.equal(outputs(one, BATCH)["logits"], expected)


def test_a_failed_cut_leaves_no_guard(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_lora(load_base(base))
    before = dict(model.get_base_model()._forward_pre_hooks)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if ".lora_B." in n).fill_(float("nan"))
    with pytest.raises(lightpeft.VerificationError):
        lightpeft.cut(model, random_plan(model))
    assert dict(model.get_base_model()._forward_pre_hooks) == before
