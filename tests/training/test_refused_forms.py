"""Forms of PEFT that cannot be cut: refused before the first step, with the reason and an alternative."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from tests.support.models import load_base, make_batch, save_base, snapshot
from tests.support.runs import NoStep, Sentences, arguments
from tests.support.zoo import BY_NAME
from torch import Tensor

import lightpeft
from lightpeft import AnatomyError, Budget, EstimationConfig, LightConfig, LightTrainer, PlanError
from lightpeft.adapters import FORMS, REFUSED, form_of

ALTERNATIVE = r"Use LoRA, or one of BOTTLENECK, IA3"
LIGHT = LightConfig(estimation=EstimationConfig(steps=3))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


def refused(error: type[Exception], match: str, model: Any, folder: Path, light: LightConfig = LIGHT) -> None:
    """By a Trainer before its first step, and the model is left as it was."""
    before = snapshot(model)
    run = NoStep(model=model, args=arguments(folder), train_dataset=Sentences(), light=light)
    with pytest.raises(error, match=match):
        run.train()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def no_batch() -> Any:
    raise AssertionError("a batch was asked for")
    yield


OTHER_TYPES: list[tuple[str, dict[str, Any], str]] = [
    ("VeraConfig", {"r": 4}, "PEFT type VERA: its weights are shared between layers"),
    ("RandLoraConfig", {"r": 4}, "PEFT type RANDLORA: its weights are shared between layers"),
    ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10}, "PEFT type ADALORA: it chooses ranks"),
    ("LoHaConfig", {"r": 4}, "PEFT type LOHA: lightpeft does not know how its weights follow a cut"),
    ("OFTConfig", {"oft_block_size": 4}, "PEFT type OFT: lightpeft does not know"),
]


@pytest.mark.parametrize(("name", "options", "message"), OTHER_TYPES, ids=[row[0] for row in OTHER_TYPES])
class TestOtherTypes:
    @pytest.fixture
    def model(self, name: str, options: dict[str, Any], base: Path) -> PeftModel:
        config = getattr(peft, name)(target_modules=["query", "value"], task_type="SEQ_CLS", **options)
        return get_peft_model(load_base(base), config)

    def test_in_a_trainer(self, message: str, model: PeftModel, tmp_path: Path) -> None:
        refused(AnatomyError, f"{message}.*{ALTERNATIVE}", model, tmp_path)

    def test_in_estimate(self, message: str, model: PeftModel) -> None:
        with pytest.raises(AnatomyError, match=f"{message}.*{ALTERNATIVE}"):
            lightpeft.estimate(model, no_batch())

    def test_in_cut(self, message: str, model: PeftModel, base: Path) -> None:
        plain = load_base(base)
        scores = lightpeft.Scores(
            *(tuple(torch.rand(n) for _ in range(3)) for n in (4, 64)),
            ranks={},
            modules={},
            steps=1,
            methods={"base": "fisher", "module": "none", "rank": "none"},
        )
        plan = lightpeft.make_plan(scores, lightpeft.find_anatomy(plain), Budget())
        with pytest.raises(AnatomyError, match=f"{message}.*{ALTERNATIVE}"):
            lightpeft.cut(model, plan)


@pytest.mark.parametrize("kind", list(PeftType), ids=lambda kind: str(kind.value))
def test_every_peft_type_is_a_form_or_refused_by_name(kind: PeftType) -> None:
    config: Any = SimpleNamespace(peft_type=kind)
    if kind.value in FORMS:
        assert form_of(config) is FORMS[kind.value]
        return
    with pytest.raises(AnatomyError, match=rf"found PEFT type {kind.value}: \w+.*\. {ALTERNATIVE}"):
        form_of(config)


def test_no_table_names_a_type_that_peft_has_not() -> None:
    known = {kind.value for kind in PeftType}
    assert FORMS.keys() | REFUSED.keys() <= known
    assert not FORMS.keys() & REFUSED.keys()


LORA_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base.*'gaussian'"),
    ({"init_lora_weights": "pissa_niter_2"}, "init_lora_weights='pissa_niter_2', which changes the base"),
    ({"init_lora_weights": "olora"}, "init_lora_weights='olora', which changes the base"),
    ({"trainable_token_indices": {"word_embeddings": [5, 6]}}, "trainable_token_indices.*Leave it out"),
    ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens, which cannot be cut. Leave it out"),
]


@pytest.mark.parametrize(("options", "message"), LORA_OPTIONS, ids=lambda value: str(value)[:40])
def test_lora_that_is_more_than_pairs_on_linears(
    options: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    if "alora_invocation_tokens" in options:
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
        model = get_peft_model(BY_NAME["llama"].build(), config)
    else:
        config = LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", **options)
        model = get_peft_model(load_base(base), config)
    with pytest.raises(AnatomyError, match=message):
        lightpeft.estimate(model, no_batch())
    refused(AnatomyError, message, model, tmp_path)


def two_adapters(base: Path, **options: Any) -> PeftModel:
    model = get_peft_model(load_base(base), lora(**options))
    model.add_adapter("other", lora(**options))
    return model


def lora(task_type: str | None = "SEQ_CLS") -> PeftConfig:
    return LoraConfig(r=2, target_modules=["query", "value"], task_type=task_type)


@pytest.mark.parametrize("active", [[], ["default", "other"]], ids=str)
def test_none_or_two_active_adapters(active: list[str], base: Path, tmp_path: Path) -> None:
    model = two_adapters(base, task_type=None)  # PEFT itself forbids it where it copies a head
    model.base_model.set_adapter(active)
    words = r"adapters \['default', 'other'\], active \[.*exactly one active.*model\.set_adapter\(NAME\)"
    refused(AnatomyError, words, model, tmp_path)


def test_an_adapter_that_is_merged(base: Path, tmp_path: Path) -> None:
    model = two_adapters(base)
    model.merge_adapter(["other"])
    refused(AnatomyError, r"merged; call model\.unmerge_adapter\(\) first", model, tmp_path)
    model = get_peft_model(load_base(base), peft.IA3Config(task_type="SEQ_CLS"))
    model.merge_adapter()
    refused(AnatomyError, r"merged; call model\.unmerge_adapter\(\) first", model, tmp_path)


def test_heads_under_prefix_tuning(base: Path, tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    model = get_peft_model(load_base(base), config)
    message = r"cuts heads, but prefix tuning gives every layer keys and values.*budget\.heads=0.*use LoRA"
    refused(PlanError, message, model, tmp_path)


def test_a_bottleneck_on_what_loses_outputs(base: Path, tmp_path: Path) -> None:
    """It mixes them, so they cannot go; without heads to cut it may stay there."""
    config = lightpeft.BottleneckConfig(size=4, target_modules=["attention.self.query"])
    model = get_peft_model(load_base(base), config)
    message = r"cuts heads or neurons out of bert.*query, but a bottleneck mixes.*output projections"
    refused(PlanError, message, model, tmp_path)
    neurons = LightConfig(estimation=LIGHT.estimation, budget=Budget(heads=0))
    run = LightTrainer(model=model, args=arguments(tmp_path), train_dataset=Sentences(), light=neurons)
    run.train()
    assert run.light.report is not None


def test_a_vector_of_labels_is_no_reason_to_refuse(base: Path) -> None:
    batch: dict[str, Tensor] = make_batch("bert", labels=True)
    model = get_peft_model(load_base(base), lora())
    assert lightpeft.estimate(model, [batch], EstimationConfig(steps=1)).steps == 1
