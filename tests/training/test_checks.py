"""What cannot be done is refused before the first step, with what was found and what to do."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import DistributedType
from peft import LoraConfig, get_peft_model
from tests.support.models import ROWS, load_base, make_batch, save_base, snapshot, tiny_peft, with_lora
from tests.support.plans import random_plan
from tests.support.runs import DEFAULT, STEPS, NoStep, Sentences, arguments, fresh_model, trainer
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM, Trainer

import lightpeft
from lightpeft import (
    AnatomyError,
    Budget,
    ConfigError,
    EstimationConfig,
    LightCallback,
    LightConfig,
    LightTrainer,
    PlanError,
    Target,
)
from lightpeft.training.callback import require_supported
from lightpeft.wrapping import peft_model_in, require_peft_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


def refused(
    error: type[Exception], match: str, base: Path, folder: Path, light: LightConfig = DEFAULT, **options: Any
) -> None:
    run = trainer(base, folder, light, kind=NoStep, **options)
    with pytest.raises(error, match=match):
        run.train()


@pytest.mark.parametrize("steps", [STEPS, STEPS + 1, 200])
def test_more_estimation_than_steps(steps: int, base: Path, tmp_path: Path) -> None:
    config = LightConfig(estimation=EstimationConfig(steps=steps))
    refused(
        ConfigError, rf"estimation\.steps is {steps}, but the run has only {STEPS}", base, tmp_path, config
    )


def test_auto_leaves_two_thirds_of_the_shortest_run(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, LightConfig())
    run.train()
    assert run.light.plan.estimation_steps == STEPS // 3


@pytest.mark.parametrize(
    ("budget", "match"),
    [
        (Budget(heads=0.9, heads_scope="layer"), r"budget\.heads=0\.9 leaves 0 of 4"),
        (Budget(neurons=0.9, min_neurons=32, neurons_scope="layer"), r"budget\.neurons=0\.9"),
        (Budget(modules=0.99), "leave nothing"),
    ],
)
def test_an_impossible_budget(budget: Budget, match: str, base: Path, tmp_path: Path) -> None:
    config = LightConfig(estimation=DEFAULT.estimation, budget=budget)
    refused(PlanError, match, base, tmp_path, config)


def test_a_model_without_peft(base: Path, tmp_path: Path) -> None:
    run = NoStep(model=load_base(base), args=arguments(tmp_path), train_dataset=Sentences(), light=DEFAULT)
    with pytest.raises(ConfigError, match=r"BertForSequenceClassification.*get_peft_model"):
        run.train()


def test_an_unknown_architecture(base: Path, tmp_path: Path) -> None:
    mamba = MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=99))
    config = LoraConfig(target_modules=["in_proj"], task_type="CAUSAL_LM")
    run = NoStep(
        model=get_peft_model(mamba, config),
        args=arguments(tmp_path),
        train_dataset=Sentences(),
        light=DEFAULT,
    )
    with pytest.raises(AnatomyError, match=r"does not know the architecture 'mamba'"):
        run.train()


class QuantisedLinear(nn.Linear):
    """A subclass with a scale beside its weight, as quantised linears are."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = torch.ones(1)


def test_a_quantised_base(base: Path, tmp_path: Path) -> None:
    plain, place = load_base(base), ROWS["bert"].at(1, "ffn_in")
    parent, _, child = place.rpartition(".")
    setattr(plain.get_submodule(parent), child, QuantisedLinear(32, 64))
    model = with_lora(plain, targets=("query", "value"))
    refused(AnatomyError, rf"{place} is a QuantisedLinear.*only a plain", base, tmp_path, model=model)


def test_a_model_that_is_cut_already(base: Path, tmp_path: Path) -> None:
    model = fresh_model(base)
    lightpeft.cut(model, random_plan(model))
    before = snapshot(model)
    refused(ConfigError, "cut in an earlier run", base, tmp_path, model=model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_callback_refuses_too(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, kind=Trainer, callbacks=[LightCallback("paper")])
    with pytest.raises(ConfigError, match=r"estimation\.steps is 800"):
        run.train()


def test_an_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="preset is 'papr'; choose one of default, paper"):
        LightCallback("papr")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, r"estimation\.steps is 0"),
        ({"steps": 1.5}, r"estimation\.steps is 1\.5"),
        ({"steps": True}, r"estimation\.steps is True"),
        ({"steps": "Auto"}, r"estimation\.steps"),
        ({"window": "half"}, r"estimation\.window is 'half'; choose one of all, second_half"),
        ({"base_score": "gradient"}, r"base_score is 'gradient'; choose one of mask, fluctuation"),
        ({"module_score": "x"}, r"module_score"),
        ({"rank_score": "x"}, r"rank_score"),
        ({"l1": -1.0}, r"estimation\.l1"),
        ({"l1": float("nan")}, r"estimation\.l1"),
        ({"gate_learning_rate": -0.1}, r"gate_learning_rate"),
    ],
)
def test_estimation_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        EstimationConfig(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"heads": 1.0}, r"budget\.heads is 1\.0"),
        ({"neurons": -0.1}, r"budget\.neurons"),
        ({"modules": float("nan")}, r"budget\.modules"),
        ({"ranks": 2}, r"budget\.ranks"),
        ({"heads": "half"}, r"budget\.heads"),
        ({"heads_scope": "model"}, r"heads_scope"),
        ({"min_heads": -1}, r"min_heads"),
        ({"align_neurons": 0}, r"align_neurons"),
        ({"min_neurons": 1.5}, r"min_neurons"),
        ({"frozen_layers": -1}, r"frozen_layers"),
        ({"frozen_layers": "all"}, r"frozen_layers"),
    ],
)
def test_budgets_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Budget(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parameters": 0.0}, r"target\.parameters is 0\.0"),
        ({"inference": 1.1}, r"target\.inference is 1\.1"),
        ({"memory": float("nan")}, r"target\.memory"),
        ({"training": "half"}, r"target\.training"),
        ({"cuts": "layers"}, r"target\.cuts"),
        ({"inference": 0.5, "memory": 0.5}, r"target has inference and memory; give one"),
    ],
)
def test_targets_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Target(**options)


def test_a_target_beside_the_shares_that_it_replaces() -> None:
    with pytest.raises(ConfigError, match=r"chooses how many heads go; leave budget\.heads out"):
        LightConfig(budget=Budget(heads=0.5), target=Target(inference=0.5))


def test_a_plain_peft_model_is_untouched_by_a_refusal(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path / "base")
    before = snapshot(model)
    refused(
        PlanError,
        "cannot be met",
        tmp_path,
        tmp_path / "run",
        LightConfig(estimation=DEFAULT.estimation, target=Target(parameters=0.01)),
        model=model,
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Positional(LightTrainer):
    """Calls the model as many loops do, without names."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        logits = model(inputs["input_ids"], inputs["attention_mask"]).logits
        return nn.functional.cross_entropy(logits, inputs["labels"])


def test_a_trainer_that_calls_the_model_by_position(base: Path, tmp_path: Path) -> None:
    """PEFT's models for a task name the arguments again; a plain PeftModel hands them on as they are."""
    run = trainer(base, tmp_path, kind=Positional, model=fresh_model(base, task_type=None))
    run.train()
    assert run.light.report is not None


class _Holder(nn.Module):
    """As a SentenceTransformer or a model of one's own holds on to a PeftModel."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.auto_model = inner


def _inside(base: Path) -> nn.Module:
    return _Holder(fresh_model(base))


def _with_add_adapter(base: Path) -> nn.Module:
    model = load_base(base)
    model.add_adapter(LoraConfig(target_modules=["query"]))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_inside, r"a _Holder with a PeftModel at 'auto_model' in it; give that one"),
        (_with_add_adapter, r"is no PeftModel \(add_adapter makes it so\)"),
        (load_base, r"without PEFT; wrap it with peft\.get_peft_model"),
    ],
)
def test_what_is_no_peft_model_is_told_what_it_is(
    make: Callable[[Path], nn.Module], message: str, base: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        require_peft_model(make(base))


class _Classifier(nn.Module):
    """A model of one's own around a PeftModel: what it trains itself stays as it is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(2))

    def forward(self, labels: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        logits = self.inner(**inputs).logits * self.scale
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def _run_of(whole: nn.Module, folder: Path, light: LightCallback, **options: Any) -> Trainer:
    data = Sentences()
    settings = arguments(folder, save_strategy="steps", save_steps=2, remove_unused_columns=False, **options)
    return Trainer(whole, settings, train_dataset=data, eval_dataset=data, callbacks=[light])


def test_a_peft_model_inside_another_model_is_cut(base: Path, tmp_path: Path) -> None:
    whole, light = _Classifier(fresh_model(base)), LightCallback(DEFAULT)
    run = _run_of(whole, tmp_path / "run", light)
    run.train()
    assert light.report is not None
    assert light.report.encoder_after < light.report.encoder_before
    assert not torch.equal(whole.scale, torch.ones(2))
    folder = lightpeft.save(whole.inner, tmp_path / "light")
    inputs = make_batch("bert")
    loaded = lightpeft.load(folder, base)
    with torch.inference_mode():
        assert torch.allclose(loaded.eval()(**inputs).logits, whole.inner.eval()(**inputs).logits, atol=1e-6)


def test_what_would_load_a_checkpoint_of_the_outer_model_is_refused(base: Path, tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    run = _run_of(_Classifier(fresh_model(base)), tmp_path / "best", LightCallback(DEFAULT), **best)
    with pytest.raises(
        ConfigError, match=r"load_best_model_at_end: the PeftModel .* is inside a _Classifier"
    ):
        run.train()
    _run_of(_Classifier(fresh_model(base)), tmp_path / "run", LightCallback(DEFAULT)).train()
    again = _run_of(_Classifier(fresh_model(base)), tmp_path / "run", LightCallback(DEFAULT))
    with pytest.raises(
        ConfigError, match=r"resume_from_checkpoint: the PeftModel .* is inside a _Classifier"
    ):
        again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_two_peft_models_in_one_model_are_refused(base: Path) -> None:
    pair = nn.ModuleDict({"one": fresh_model(base), "other": fresh_model(base)})
    with pytest.raises(ConfigError, match=r"a ModuleDict with 2 PeftModels in it \(one, other\)"):
        peft_model_in(pair)


@pytest.mark.parametrize(
    ("flag", "advice"), [("deepspeed", "DeepSpeed.*two_phase.py"), ("fsdp", "FSDP.*two_phase.py")]
)
def test_what_does_not_survive_a_cut_is_told_how_to_be_left_out(flag: str, advice: str) -> None:
    kinds = {"n_gpu": 0, "deepspeed": None, "fsdp": None}
    given: Any = SimpleNamespace(**kinds | {flag: True})
    with pytest.raises(ConfigError, match=advice) as raised:
        require_supported(given)
    assert "CUDA_VISIBLE_DEVICES" not in str(raised.value)


@pytest.mark.parametrize("kind", [LightTrainer, Trainer])
def test_processes_that_train_each_for_itself_are_warned_of(
    kind: type[Trainer], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks = [] if kind is LightTrainer else [LightCallback(DEFAULT)]
    run = trainer(base, tmp_path / "run", DEFAULT, kind=kind, callbacks=callbacks, max_steps=5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match=r"2 processes were started .* trains for itself"):
        run.train()


@pytest.mark.parametrize(
    ("engine", "name"), [(DistributedType.DEEPSPEED, "DeepSpeed"), (DistributedType.FSDP, "FSDP")]
)
def test_an_engine_that_only_accelerate_launch_was_told_of_is_refused(
    engine: DistributedType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = sys.modules["lightpeft.training.callback"]
    monkeypatch.setattr(callback, "is_initialized", lambda: True)
    monkeypatch.setattr(callback, "AcceleratorState", lambda: SimpleNamespace(distributed_type=engine))
    given: Any = SimpleNamespace(n_gpu=0, deepspeed=None, fsdp=None)
    with pytest.raises(ConfigError, match=f"{name}.*two_phase.py"):
        require_supported(given)
