"""Whole light runs with forms that have no ranks, on an adapter that somebody trained, and on a cut base."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from tests.support.models import assert_identical, load_base, make_batch, save_base, snapshot
from tests.support.probing import random_scores
from tests.support.runs import Sentences, arguments
from tests.support.zoo import BY_NAME
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer

import lightpeft
from lightpeft import (
    Budget,
    CheckpointError,
    EstimationConfig,
    LightConfig,
    LightTrainer,
    find_anatomy,
    make_plan,
)
from lightpeft.adapters import adapter_parameters
from lightpeft.surgery import padded_batch

LIGHT = LightConfig(
    estimation=EstimationConfig(steps=3),
    budget=Budget(heads=0.4, neurons=0.4, heads_scope="global", neurons_scope="global"),
    learning_rate_factor=1.0,
)
LLAMA = BY_NAME["llama"]
CONFIGS: dict[str, Callable[[str], PeftConfig]] = {
    "ia3": lambda task: IA3Config(task_type=task, init_ia3_weights=False),
    "prompt": lambda task: PromptTuningConfig(task_type=task, num_virtual_tokens=4),
    "p-tuning": lambda task: PromptEncoderConfig(
        task_type=task, num_virtual_tokens=4, encoder_hidden_size=16
    ),
    "prefix": lambda task: PrefixTuningConfig(task_type=task, num_virtual_tokens=4),
}
MODELS = ["bert", "llama"]
FORMS = ["ia3", "prompt", "p-tuning"]


class Texts(Dataset[dict[str, Tensor]]):
    """Random texts of different lengths for a decoder."""

    def __init__(self) -> None:
        batches = [LLAMA.batch(padded=True, labels=True, seed=seed) for seed in range(8)]
        self.columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: column[index] for key, column in self.columns.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture
def build(name: str, folder: Path) -> Callable[[], PreTrainedModel]:
    return LLAMA.build if name == "llama" else lambda: load_base(folder)


def wrapped(base: PreTrainedModel, form: str) -> PeftModel:
    model = get_peft_model(base, CONFIGS[form]("CAUSAL_LM" if "llama" in str(type(base)) else "SEQ_CLS"))
    assert isinstance(model, PeftModel)
    return model


def run_of(
    model: PeftModel, folder: Path, light: LightConfig = LIGHT, kind: type = LightTrainer, **options: Any
) -> Any:
    data = Texts() if "Llama" in type(model.get_base_model()).__name__ else Sentences()
    more = {"light": light} if kind is LightTrainer else {}
    return kind(model=model, args=arguments(folder, max_steps=6, **options), train_dataset=data, **more)


@torch.no_grad()
def logits(model: PeftModel, name: str) -> Tensor:
    model.eval()
    batch = make_batch("bert") if name == "bert" else LLAMA.batch(padded=True)
    found: Tensor = model(**batch).logits
    return found


def moved(model: PeftModel, before: dict[str, Tensor]) -> set[str]:
    """Parameters with other values; the shapes must be the same."""
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def trainable(model: PeftModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMS)
class TestForms:
    def test_a_run_cuts_heads_and_neurons_and_loads(
        self, form: str, name: str, build: Callable[[], PreTrainedModel], tmp_path: Path
    ) -> None:
        model = wrapped(build(), form)
        run = run_of(model, tmp_path / "run")
        run.train()
        plan, report = run.light.plan, run.light.report
        assert run.state.global_step == 6
        assert any(len(layer.heads) < layer.head_count for layer in plan.layers)
        assert all(len(layer.neurons) < layer.neuron_count for layer in plan.layers)
        assert not plan.modules
        assert report.encoder_after < 0.8 * report.encoder_before
        assert report.peft_after > 0
        check_trainable_load(lightpeft.save(model, tmp_path / "trainable"), model, build)
        folder = lightpeft.save(model, tmp_path / "light")
        loaded = lightpeft.load(folder, base=build())
        expected = logits(model, name)
        if form == "p-tuning":  # PEFT keeps what its encoder put out, computed there for one row at a time
            torch.testing.assert_close(logits(loaded, name), expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(logits(loaded, name), expected)

    def test_only_the_adapter_moves_before_and_after_the_cut(
        self, form: str, name: str, build: Callable[[], PreTrainedModel], tmp_path: Path
    ) -> None:
        model = wrapped(build(), form)
        start = snapshot(model)
        states: list[dict[str, Tensor]] = []
        run = run_of(model, tmp_path)
        real = run.light.session.end_step

        def end_step(*args: Any) -> bool:
            if run.state.global_step == 3:
                states.append({n: p.detach().clone() for n, p in model.named_parameters()})
            done: bool = real(*args)
            if done:
                states.append({n: p.detach().clone() for n, p in model.named_parameters()})
            return done

        run.light.session.end_step = end_step
        run.train()
        estimated, cut = states
        wanted = trainable(model)
        assert {n for n, value in estimated.items() if not torch.equal(value, start[n])} == wanted
        assert moved(model, cut) == wanted
        assert {id(p) for p in adapter_parameters(model)} <= {
            id(p) for n, p in model.named_parameters() if n in wanted
        }

    def test_it_runs_on_a_base_that_was_cut_plain(
        self, form: str, name: str, build: Callable[[], PreTrainedModel], tmp_path: Path
    ) -> None:
        model = wrapped(cut_plain(build()), form)
        before = snapshot(model)
        run = run_of(model, tmp_path, kind=Trainer)
        run.train()
        assert moved(model, before) == trainable(model)
        assert torch.isfinite(logits(model, name)).all()

    def test_a_run_resumes_after_the_cut(
        self, form: str, name: str, build: Callable[[], PreTrainedModel], tmp_path: Path
    ) -> None:
        whole = wrapped(build(), form)
        run_of(whole, tmp_path, save_strategy="steps", save_steps=4).train()
        again = wrapped(build(), form)
        run = run_of(again, tmp_path / "again")
        if form == "p-tuning":
            with pytest.raises(CheckpointError, match=r"checkpoint-4 cannot be resumed.*not the encoder"):
                run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
            return
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert_identical(again.state_dict(), whole.state_dict())


def check_trainable_load(folder: Path, model: PeftModel, build: Callable[[], PreTrainedModel]) -> None:
    if model.active_peft_config.is_prompt_learning:
        with pytest.raises(CheckpointError, match="Cannot set a prompt learning adapter to trainable"):
            lightpeft.load(folder, base=build(), is_trainable=True)
    else:
        assert trainable(lightpeft.load(folder, base=build(), is_trainable=True)) == trainable(model)


def cut_plain(base: PreTrainedModel) -> PreTrainedModel:
    """A base without PEFT, cut by random scores."""
    layers = find_anatomy(base).layers
    scores = lightpeft.Scores(
        heads=tuple(torch.rand(layer.heads) for layer in layers),
        neurons=tuple(torch.rand(layer.neurons) for layer in layers),
        ranks={},
        modules={},
        steps=1,
        methods={"base": "fisher", "module": "none", "rank": "none"},
    )
    lightpeft.cut(base, make_plan(scores, find_anatomy(base), LIGHT.budget))
    return base


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", [LoraConfig, VeraConfig], ids=["lora", "vera"])
def test_forms_on_linears_run_on_a_base_that_was_cut_plain(
    kind: type, name: str, build: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    """Where the targets' shapes are alike; VeRA's shared matrices are as wide as the widest."""
    base = cut_plain(build())
    targets = ["query"] if name == "bert" else ["q_proj"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = get_peft_model(base, kind(r=2, target_modules=targets))
    before = snapshot(model)
    run_of(model, tmp_path, kind=Trainer).train()
    assert moved(model, before) == trainable(model)


@pytest.mark.parametrize("name", ["llama"])
def test_prefix_tuning_runs_where_heads_stay(
    name: str, build: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    model = wrapped(build(), "prefix")
    light = LightConfig(
        estimation=LIGHT.estimation, budget=Budget(heads=0, neurons=0.4), learning_rate_factor=1.0
    )
    run = run_of(model, tmp_path / "run", light)
    run.train()
    assert all(len(layer.heads) == layer.head_count for layer in run.light.plan.layers)
    assert run.light.report.encoder_after < 0.9 * run.light.report.encoder_before
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"), base=build())
    assert torch.equal(logits(loaded, name), logits(model, name))


@pytest.mark.parametrize("name", ["bert"])
@pytest.mark.parametrize("options", [{}, {"bias": "all"}, {"bias": "lora_only"}, {"use_dora": True}], ids=str)
def test_an_adapter_of_somebody_goes_on_lightly(
    options: dict[str, Any], name: str, build: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    """Trained and saved by plain PEFT, loaded by PEFT, then a light run; the base on disk is the same."""
    config = LoraConfig(
        r=4, target_modules=["query", "value", "intermediate.dense"], task_type="SEQ_CLS", **options
    )
    theirs = get_peft_model(build(), config)
    run_of(theirs, tmp_path / "theirs", kind=Trainer).train()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    model = PeftModel.from_pretrained(build(), str(tmp_path / "adapter"), is_trainable=True)
    assert torch.equal(logits(model, name), logits(theirs, name))
    run = run_of(model, tmp_path / "run")
    run.train()
    assert run.light.report.modules_after < run.light.report.modules_before
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert torch.equal(logits(loaded, name), logits(model, name))
    assert_identical(loaded.state_dict(), model.state_dict())


def test_ia3_vectors_follow_the_base() -> None:
    """Those on inputs of output projections and those on outputs of keys, values and neurons."""
    base = BY_NAME["bert"].build()
    config = IA3Config(
        target_modules=["key", "value", "intermediate.dense", "output.dense"],
        feedforward_modules=["output.dense"],
        init_ia3_weights=False,
    )
    model = get_peft_model(base, config)
    before = snapshot(model)
    plan = make_plan(random_scores(model), find_anatomy(model), LIGHT.budget)
    lightpeft.cut(model, plan)
    start = "base_model.model.bert.encoder.layer"
    for layer in plan.layers:
        channels = [head * 8 + i for head in layer.heads for i in range(8)]
        for end, index, dim in (
            ("attention.self.key", channels, 0),
            ("attention.output.dense", channels, 1),
            ("intermediate.dense", list(layer.neurons), 0),
            ("output.dense", list(layer.neurons), 1),
        ):
            key = f"{start}.{layer.index}.{end}.ia3_l.default"
            expected = before[key].index_select(dim, torch.tensor(index))
            assert torch.equal(model.state_dict()[key], expected)


def test_verification_pads_embedded_prompts_too() -> None:
    """What a base gets under prompt tuning are embeddings, and masks matter there as well."""
    model = wrapped(LLAMA.build(), "prompt")
    full = padded_batch(model, {"inputs_embeds": torch.randn(2, 9, 32)})
    assert full["attention_mask"].shape == (2, 9)
    assert 0 < int(full["attention_mask"].sum()) < 18
    given = torch.ones(2, 9, dtype=torch.long)
    given[1, 4:] = 0
    batch = {"inputs_embeds": torch.randn(2, 9, 32), "attention_mask": given}
    assert torch.equal(padded_batch(model, batch)["attention_mask"], given)
