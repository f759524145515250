"""Runs on quantised bases: estimated on what is quantised, cut in floats, quantised once more."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, prepare_model_for_kbit_training
from tests.support.language import save_language_model
from tests.support.models import load_base, make_batch, save_base, with_lora
from tests.support.runs import DEFAULT, NoStep, Sentences, arguments, trainer, weights
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    QuantoConfig,
    TorchAoConfig,
    Trainer,
)

from lightpeft import (
    CheckpointError,
    ConfigError,
    LightCallback,
    PlanError,
    cut,
    find_anatomy,
    load,
    make_plan,
)
from lightpeft.linears import is_quantised, matrix
from lightpeft.surgery import base_digests, record_of

FLOATS = ["classifier", "bert.pooler"]
SIZES = {"width": 64, "heads": 4, "neurons": 128}
EVERY_LAYER = dataclasses.replace(
    DEFAULT, budget=dataclasses.replace(DEFAULT.budget, heads_scope="layer", neurons_scope="layer")
)
"""Leaves three heads of 16, which are no whole blocks of 4 bits."""

QUANTISATIONS: dict[str, Callable[[], Any]] = {
    "nf4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=FLOATS
    ),
    "nf4, twice": lambda: BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=FLOATS,
    ),
    "int8": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=FLOATS),
    "torchao": lambda: _torchao(),
    "quanto": lambda: QuantoConfig(weights="int8", modules_to_not_convert=FLOATS),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
    # peft 0.21 enables checkpointing under the old name.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]
SAVED = {"save_strategy": "steps", "save_steps": 3}


def _torchao() -> TorchAoConfig:
    """Not among what `make` installs: its import alone prints warnings in every process."""
    torchao = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(torchao.Int8WeightOnlyConfig(), modules_to_not_convert=FLOATS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), **SIZES)


def quantised_model(base: Path, name: str) -> PeftModel:
    plain = load_base(base, quantization_config=QUANTISATIONS[name]())
    return with_lora(prepare_model_for_kbit_training(plain, use_gradient_checkpointing=False))


def outputs_in_training(model: nn.Module) -> torch.Tensor:
    """bitsandbytes computes in another way on a CPU when nothing is trained."""
    found: torch.Tensor = model.train()(**make_batch("bert")).logits
    return found.detach()


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_a_run_cuts_the_floats_and_quantises_them_as_stock_models_are(
    name: str, base: Path, tmp_path: Path
) -> None:
    model = quantised_model(base, name)
    callback = LightCallback(EVERY_LAYER)
    run = trainer(base, tmp_path / "run", model=model, kind=Trainer, callbacks=[callback], **SAVED)
    run.train()
    assert callback.report is not None
    assert callback.report.difference < 1e-5
    assert callback.report.encoder_after < callback.report.encoder_before
    assert run.model is model
    assert record_of(model) is not None
    linears = [module for module in model.modules() if is_quantised(module)]
    in_floats = 3 if "nf4" in name else 0
    """Output projections of three heads of 16, which bitsandbytes gets wrong on CPUs."""
    assert len(linears) == 18 - in_floats

    floats = load(tmp_path / "run" / "checkpoint-10")
    again = load(tmp_path / "run" / "checkpoint-10", quantization_config=QUANTISATIONS[name]())
    places = dict(again.named_modules())
    for path, module in model.named_modules():
        if is_quantised(module):
            assert type(places[path]) is type(module)
            torch.testing.assert_close(matrix(places[path]), matrix(module), rtol=1e-4, atol=0)
            wanted = floats.get_submodule(path).weight
            error = (matrix(module) - wanted).norm() / wanted.norm()
            assert 0 < error < (0.15 if "nf4" in name else 0.01)
    torch.testing.assert_close(outputs_in_training(again), outputs_in_training(model))


def test_the_fingerprint_is_the_float_bases(base: Path, tmp_path: Path) -> None:
    model = quantised_model(base, "int8")
    trainer(base, tmp_path / "run", model=model, **SAVED).train()
    record, wanted = record_of(model), base_digests(load_base(base))
    assert record is not None
    encoder = {name: digest for name, digest in wanted.items() if ".encoder." in name}
    assert {name: record.base[name] for name in encoder} == encoder


def test_moments_stay_and_parameters_are_the_optimizers(base: Path, tmp_path: Path) -> None:
    model = quantised_model(base, "nf4")
    run = trainer(base, tmp_path / "run", model=model, kind=Trainer, callbacks=[LightCallback(DEFAULT)])
    run.train()
    known = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == known
    state = run.optimizer.state
    assert all(state[p]["exp_avg"].shape == p.shape and float(state[p]["step"]) == 10 for p in trained)


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_is_resumed_before_and_after_its_cut(step: int, base: Path, tmp_path: Path) -> None:
    whole = trainer(base, tmp_path / "whole", model=quantised_model(base, "nf4"), **SAVED)
    whole.train()
    again = trainer(base, tmp_path / "whole", model=quantised_model(base, "nf4"))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    wanted, found = weights(whole.model), weights(again.model)
    for name, value in wanted.items():
        if ".lora_" in name or "classifier" in name:
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_gradients_pass_after_an_evaluation(base: Path, tmp_path: Path) -> None:
    model = quantised_model(base, "nf4")
    LightCallback(DEFAULT).session.begin(model, 10, show_progress=False)
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query.base_layer")
    with torch.no_grad():
        model.eval()(**make_batch("bert"))
    inputs = torch.randn(2, 64, requires_grad=True)
    layer.train()(inputs).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().max() > 0


def test_a_decoder_with_checkpointed_activations(tmp_path: Path) -> None:
    save_language_model("llama", tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config)
    prepared = prepare_model_for_kbit_training(plain, gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model, callback = get_peft_model(prepared, lora), LightCallback(DEFAULT)
    rows = [{"input_ids": torch.arange(1, 9), "labels": torch.arange(1, 9)} for _ in range(40)]
    Trainer(model, arguments(tmp_path / "run"), train_dataset=rows, callbacks=[callback]).train()
    layers = [one for one in model.modules() if "gradient_checkpointing" in vars(one)]
    assert callback.plan is not None
    assert layers
    assert all(one.gradient_checkpointing for one in layers)


REFUSED: dict[str, tuple[str, Callable[[Path, Path], PeftModel]]] = {
    "a new head": (
        "gives no floats",
        lambda base, _: with_lora(
            load_base(
                base, quantization_config=BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["x"])
            )
        ),
    ),
    "stored quantised": ("stored quantised", lambda base, folder: stored(base, folder)),
    "prompt tuning": (
        "LoRA alone",
        lambda base, _: get_peft_model(
            load_base(base, quantization_config=QUANTISATIONS["nf4"]()),
            PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
        ),
    ),
    "two adapters": ("named 'default'; found default, other", lambda base, _: with_another(base)),
    "by hand": ("transformers did not quantise", lambda base, _: by_hand(base)),
}


def stored(base: Path, folder: Path) -> PeftModel:
    load_base(base, quantization_config=QUANTISATIONS["nf4"]()).save_pretrained(folder)
    return with_lora(AutoModelForSequenceClassification.from_pretrained(folder))


def with_another(base: Path) -> PeftModel:
    model = quantised_model(base, "nf4")
    model.add_adapter("other", model.peft_config["default"])
    return model


def by_hand(base: Path) -> PeftModel:
    from optimum.quanto import freeze, qint8, quantize

    plain = load_base(base)
    quantize(plain.bert.encoder, weights=qint8)
    freeze(plain.bert.encoder)
    return with_lora(plain)


@pytest.mark.parametrize("case", REFUSED)
def test_bases_without_floats_are_refused_before_a_step(case: str, base: Path, tmp_path: Path) -> None:
    message, make = REFUSED[case]
    run = NoStep(
        model=make(base, tmp_path / "stored"),
        args=arguments(tmp_path / "run"),
        train_dataset=Sentences(),
        light=DEFAULT,
    )
    with pytest.raises(ConfigError, match=message):
        run.train()


def test_cutting_by_hand_is_refused_with_what_to_do(base: Path) -> None:
    from lightpeft import Budget, estimate

    model = quantised_model(base, "nf4")
    batches = [make_batch("bert", labels=True, seed=seed) for seed in range(2)]
    scores = estimate(model, batches, dataclasses.replace(DEFAULT.estimation, steps=2))
    plan = make_plan(scores, find_anatomy(model), Budget())
    with pytest.raises(PlanError, match="quantization_config="):
        cut(model, plan, scores=scores, batch=batches[0])


def test_a_base_in_memory_is_not_quantised(base: Path, tmp_path: Path) -> None:
    trainer(base, tmp_path / "run", **SAVED).train()
    with pytest.raises(CheckpointError, match="in memory"):
        load(tmp_path / "run" / "checkpoint-6", load_base(base), quantization_config=QUANTISATIONS["nf4"]())


def test_what_a_quantised_linear_multiplies_by(base: Path) -> None:
    floats = load_base(base).get_submodule("bert.encoder.layer.0.output.dense").requires_grad_(False)
    packed = load_base(base, quantization_config=QUANTISATIONS["quanto"]())
    found = matrix(packed.get_submodule("bert.encoder.layer.0.output.dense"))
    assert found.shape == (64, 128)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, floats.weight, rtol=0, atol=float(floats.weight.abs().max()) / 200)
