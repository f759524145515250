"""The behaviours that peft asks of its own tuners, asked of bottleneck adapters by peft's own tests."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.peft_source import common_tester
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from lightpeft.adapters.bottleneck import BottleneckConfig

PeftTester: Any = common_tester()

pytestmark = [
    # peft and its tests use the names that transformers has renamed in 5.23.
    pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"),
    # peft says so, rightly, in the tests that delete the active adapter.
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted:UserWarning"),
]


@dataclass(frozen=True)
class Kind:
    """A kind of model: peft asks different behaviours of each."""

    task_type: str
    auto: Any
    model_type: str
    options: Mapping[str, Any]


TOKENS = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    **TOKENS,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **TOKENS}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
KINDS = {
    "encoder": Kind("FEATURE_EXTRACTION", AutoModel, "bert", SIZES),
    "classifier": Kind("SEQ_CLS", AutoModelForSequenceClassification, "bert", SIZES),
    "decoder": Kind("CAUSAL_LM", AutoModelForCausalLM, "llama", SIZES),
    "conv1d": Kind("CAUSAL_LM", AutoModelForCausalLM, "gpt2", GPT2),
    "encoder_decoder": Kind("SEQ_2_SEQ_LM", AutoModelForSeq2SeqLM, "t5", T5 | TOKENS),
}
GENERATING = ("decoder", "conv1d", "encoder_decoder")
NOT_A_CLASSIFIER = ("encoder", *GENERATING)

NOT_APPLICABLE = {
    "_test_from_pretrained_config_construction": "it wants the very object that was given, which would have "
    "to be written into where names are still to be found: test_one_config.py tests that a copy is",
    **dict.fromkeys(
        (
            "_test_merge_layers",
            "_test_merge_layers_fp16",
            "_test_merge_layers_is_idempotent",
            "_test_merge_layers_multi",
            "_test_merge_layers_nan",
            "_test_safe_merge",
        ),
        "a non-linear adapter cannot be merged: test_bottleneck.py tests that it is refused",
    ),
    **dict.fromkeys(
        ("_test_mixed_adapter_batches", "_test_generate_with_mixed_adapter_batches_and_beam_search"),
        "peft's test skips itself for all but LoRA and RoAd",
    ),
    **dict.fromkeys(
        (
            "_test_weighted_combination_of_adapters",
            "_test_weighted_combination_of_adapters_ia3",
            "_test_weighted_combination_of_adapters_lora",
        ),
        "peft's test skips itself for all but LoRA and IA3: only linear adapters can be averaged",
    ),
    "_test_training_prompt_learning_tasks": "prompt learning only",
    "_test_adding_multiple_adapters_with_bias_raises": "there is no option to train biases of the base",
}
ONLY = {
    **dict.fromkeys(("_test_generate", "_test_generate_half_prec", "_test_generate_pos_args"), GENERATING),
    # peft's test compares generated scores.
    "_test_disable_adapter": GENERATING,
    # peft's test wants no gradient outside of the adapters, and the head of a classifier has one.
    "_test_training_gradient_checkpointing": NOT_A_CLASSIFIER,
    "_test_training_layer_indexing": NOT_A_CLASSIFIER,
    # An encoder-decoder needs inputs for its decoder as well, which peft's test does not give.
    "_test_passing_input_embeds_works": ("encoder", "classifier", "decoder", "conv1d"),
}
ARGUMENTS: dict[str, tuple[dict[str, Any], ...]] = {
    "_test_add_adapter_no_autocast_adapter_dtype": ({"dtype": torch.float16}, {"dtype": torch.bfloat16}),
    "_test_passing_input_embeds_works": ({"test_name": ""},),
    "_test_training_gradient_checkpointing": ({"use_reentrant": True}, {"use_reentrant": False}),
}
BEHAVIOURS = [name for name in sorted(vars(PeftTester)) if name.startswith("_test_")]
CASES = [
    pytest.param(behaviour, kind, form, id=f"{behaviour.removeprefix('_test_')}-{kind}-{form}")
    for behaviour in BEHAVIOURS
    if behaviour not in NOT_APPLICABLE
    for kind in ONLY.get(behaviour, tuple(KINDS))
    for form in ("sequential", "parallel")
]


def arguments_of(behaviour: str, kind: str) -> tuple[dict[str, Any], ...]:
    if behaviour == "_test_generate_pos_args":
        return ({"raises_err": kind == "encoder_decoder"},)
    return ARGUMENTS.get(behaviour, ({},))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model, saved as a stock checkpoint; "gpt2" in its name would make peft's tests skip it."""
    parent = tmp_path_factory.mktemp("bases")
    for name, kind in KINDS.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind.model_type, **kind.options)
        model = kind.auto.from_config(config)
        if name in GENERATING:
            model.generation_config.max_new_tokens = 3
        model.save_pretrained(parent / name)
    return {name: parent / name for name in KINDS}


def asking(kind: str) -> Any:
    class Asking(PeftTester):  # type: ignore[misc]
        transformers_class = KINDS[kind].auto
        torch_device = "cpu"

        def prepare_inputs_for_testing(self) -> dict[str, Tensor]:
            inputs = {
                "input_ids": torch.tensor([[1, 1, 1], [1, 2, 1]]),
                "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 1]]),
            }
            if kind == "encoder_decoder":
                inputs["decoder_input_ids"] = inputs["input_ids"].clone()
            return inputs

    return Asking()


@pytest.mark.parametrize(("behaviour", "kind", "form"), CASES)
def test_behaviour(behaviour: str, kind: str, form: str, folders: dict[str, Path]) -> None:
    options = {"task_type": KINDS[kind].task_type, "form": form, "size": 8, "init_weights": False}
    for arguments in arguments_of(behaviour, kind):
        ask = getattr(asking(kind), behaviour)
        try:
            ask(
                model_id=str(folders[kind]),
                config_cls=BottleneckConfig,
                config_kwargs=copy.copy(options),
                **arguments,
            )
        except pytest.skip.Exception as skipped:
            pytest.fail(f"peft's test skipped itself; list it in NOT_APPLICABLE: {skipped}")


def test_every_behaviour_is_asked_or_listed() -> None:
    asked = {case.values[0] for case in CASES}
    assert asked.isdisjoint(NOT_APPLICABLE)
    assert asked | set(NOT_APPLICABLE) == set(BEHAVIOURS)
    assert set(ONLY) | set(ARGUMENTS) <= asked
