"""Rows: what users do to a base and its adapter before and after training."""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lightpeft import BottleneckConfig, Budget, LightConfig, Target
from tests.settings.flags import SAVES
from tests.settings.kinds import GPT2, LLAMA, LLAMA_CLASSIFIER, ROBERTA, T5, Kind
from tests.settings.row import LIGHT, Row


def _unfreeze(*pieces: str) -> Any:
    def wrapped(model: PeftModel) -> None:
        for name, parameter in model.named_parameters():
            if any(piece in name for piece in pieces):
                parameter.requires_grad = True

    return wrapped


def _resize(count: int) -> Any:
    def before(base: PreTrainedModel) -> PreTrainedModel:
        base.resize_token_embeddings(count, mean_resizing=False)
        return base

    return before


def _disturb(*pieces: str) -> Any:
    """A base that was trained before, in part, and never saved."""

    def before(base: PreTrainedModel) -> PreTrainedModel:
        found = [one for name, one in base.named_parameters() if any(piece in name for piece in pieces)]
        assert found
        with torch.no_grad():
            for one in found:
                one.add_(0.1 * torch.randn_like(one))
        return base

    return lambda base: _seeded(before, base)


def _seeded(change: Any, base: PreTrainedModel) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(21)
        changed: PreTrainedModel = change(base)
    return changed


def _head(make: Any) -> Any:
    def before(base: PreTrainedModel) -> PreTrainedModel:
        base.classifier = make(base.config.hidden_size)
        return base

    return lambda base: _seeded(before, base)


def _plain_head(width: int) -> nn.Module:
    return nn.Linear(width, 3)


def _deep_head(width: int) -> nn.Module:
    layers = {"down": nn.Linear(width, 8), "act": nn.Tanh(), "out": nn.Linear(8, 3)}
    return nn.Sequential(OrderedDict(layers))


def _merged_first(base: PreTrainedModel) -> PreTrainedModel:
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    merged: PreTrainedModel = get_peft_model(base, config).merge_and_unload()
    return merged


def _cast(dtype: torch.dtype, *pieces: str) -> Any:
    """Casts everything, or the parameters of some names."""

    def change(model: Any) -> Any:
        for name, parameter in model.named_parameters():
            if not pieces or any(piece in name for piece in pieces):
                parameter.data = parameter.data.to(dtype)
        return model

    return change


def _second_adapter(model: PeftModel) -> None:
    model.add_adapter("second", LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    model.set_adapter("default")


def _ia3(kind: Kind, base: PreTrainedModel) -> IA3Config:
    feedforward = [name for name in kind.targets if name in ("output.dense",)]
    targets = ["key", "value", *feedforward]
    return IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type=kind.task_type)


def _bottleneck(form: Any) -> Any:
    return lambda kind, base: BottleneckConfig(form=form, size=6, task_type=kind.task_type)


def _budget(**options: Any) -> LightConfig:
    return LightConfig(LIGHT.estimation, Budget(**options))


def _target(**options: Any) -> LightConfig:
    return LightConfig(LIGHT.estimation, target=Target(**options))


WHOLE_BLOCKS = _budget(
    heads=0.7, neurons=0.7, heads_scope="global", neurons_scope="global", min_heads=0, min_neurons=0
)
BF16 = {"dtype": torch.bfloat16}
ROPE = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}

CONV1D: dict[str, Any] = {"fan_in_fan_out": True}
TIED = ("Model has `tie_word_embeddings=True`", "Setting `save_embedding_layers` to `True`")

TRAINED_BESIDE = [
    Row("biases of everything", lora={"bias": "all"}, arguments=SAVES, resume=(2, 6)),
    Row("biases of modules", lora={"bias": "lora_only"}),
    Row("biases of modules, LLaMA", LLAMA, lora={"bias": "lora_only"}),
    Row("biases of everything, LLaMA classifier", LLAMA_CLASSIFIER, lora={"bias": "all"}),
    Row("norms unfrozen", wrapped=_unfreeze("LayerNorm"), arguments=SAVES, resume=(2, 6)),
    Row("norms unfrozen, LLaMA", LLAMA, wrapped=_unfreeze("layernorm", "norm.weight")),
    Row("norms in modules_to_save", LLAMA, lora={"modules_to_save": ["norm"]}),
    Row("embeddings unfrozen", wrapped=_unfreeze("embeddings.word")),
    Row("embeddings unfrozen, tied", GPT2, lora=CONV1D, wrapped=_unfreeze("wte")),
    Row("pooler unfrozen", wrapped=_unfreeze("pooler")),
    Row("one base matrix unfrozen", wrapped=_unfreeze("layer.1.output.dense.base_layer.weight")),
    Row("positions unfrozen", wrapped=_unfreeze("position_embeddings"), arguments=SAVES, resume=(6,)),
]

TOKENS_ADDED = [
    Row("tokens added", before=_resize(108)),
    Row("tokens added, LLaMA", LLAMA, before=_resize(108)),
    Row(
        "tokens added, trained",
        LLAMA,
        before=_resize(108),
        lora={"modules_to_save": ["embed_tokens", "lm_head"]},
        warns=TIED,
        arguments=SAVES,
        resume=(2, 6),
    ),
    Row(
        "tokens added, tied",
        GPT2,
        before=_resize(108),
        lora=CONV1D | {"modules_to_save": ["wte"]},
        warns=TIED,
    ),
    Row(
        "tokens added, some rows trained",
        LLAMA,
        before=_resize(108),
        lora={"trainable_token_indices": [99, 100]},
        refusal="trainable_token_indices",
    ),
    Row("tokens taken away", before=_resize(98)),
]

HEADS = [
    Row(
        "own head",
        before=_head(_plain_head),
        lora={"modules_to_save": ["classifier"]},
        arguments=SAVES,
        resume=(6,),
    ),
    Row("own deep head", before=_head(_deep_head), lora={"modules_to_save": ["classifier"]}),
    Row("own head, frozen", before=_head(_plain_head), lora={"task_type": None}),
    Row("head without a task type", lora={"task_type": None}),
    Row("head of two layers", ROBERTA),
    Row("LoRA on the language model's head", LLAMA, lora={"target_modules": [*LLAMA.targets, "lm_head"]}),
    Row("LoRA on the embedding", LLAMA, lora={"target_modules": [*LLAMA.targets, "embed_tokens"]}),
    Row(
        "LoRA on a tied head",
        GPT2,
        lora={"target_modules": [*GPT2.targets, "lm_head"]},
        warns=(*TIED, "fan_in_fan_out is set to"),
    ),
    Row("LoRA on a tied head, T5", T5, lora={"target_modules": [*T5.targets, "lm_head"]}, warns=TIED),
]

OTHER_BASES = [
    Row("a first adapter merged", before=_merged_first),
    Row("biases trained before", before=_disturb(".bias")),
    Row("norms trained before", before=_disturb("LayerNorm.weight")),
    Row("an embedding row exchanged", before=_disturb("word_embeddings")),
    Row("another activation", base={"hidden_act": "relu"}),
    Row("another epsilon", LLAMA, base={"rms_norm_eps": 1e-2}),
    Row("another layer norm epsilon", base={"layer_norm_eps": 1e-2}),
    Row("rope scaling", LLAMA, base=ROPE),
    Row("a decoder of an encoder", base={"is_decoder": True}, warns=(".*is_decoder.*",)),
    Row("eager attention", base={"attn_implementation": "eager"}, tolerance=1e-5),
    Row("another pad token", LLAMA_CLASSIFIER, base={"pad_token_id": 7}),
    Row("a problem type", base={"problem_type": "single_label_classification"}),
    Row(
        "names of classes", base={"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    ),
    Row("dropout", base={"hidden_dropout_prob": 0.1}, arguments=SAVES, resume=(2, 6)),
]

DTYPES = [
    Row("bf16 autocast", arguments={"bf16": True}),
    Row("bf16 base", base=BF16),
    Row("bf16 base, LLaMA", LLAMA, base=BF16, arguments=SAVES, resume=(2, 6)),
    Row("bf16 base and autocast", LLAMA, base=BF16, arguments={"bf16": True}),
    Row("bf16 base, adapter as it", LLAMA, base=BF16, wrapped=_cast(torch.bfloat16)),
    Row(
        "bf16 base with float32 norms",
        LLAMA,
        autocast=True,
        base=BF16,
        before=_cast(torch.float32, "norm"),
        arguments={"bf16": True},
    ),
    Row("bf16 base, checkpointing", LLAMA, base=BF16, arguments={"activation_checkpointing": True}),
    Row("bf16 base, T5", T5, base=BF16),
    Row("base cast before training", before=lambda base: base.to(torch.bfloat16)),
    Row("model cast after training", after=lambda model: model.to(torch.bfloat16)),
    Row("adapter cast after training", after=_cast(torch.bfloat16, "lora_")),
    Row("adapter cast to float64", wrapped=_cast(torch.float64, "lora_"), arguments={"bf16": True}),
    Row("float64", base={"dtype": torch.float64}),
    Row("float16 base", base={"dtype": torch.float16}, arguments={"learning_rate": 1e-4}),
]

FORMS = [
    Row("DoRA", lora={"use_dora": True}),
    Row("rank-stabilised", lora={"use_rslora": True}, arguments=SAVES, resume=(2, 6)),
    Row("patterns of ranks", lora={"rank_pattern": {"query": 6}, "alpha_pattern": {"value": 3}}),
    Row("LoRA dropout", lora={"lora_dropout": 0.1}, arguments=SAVES, resume=(2, 6)),
    Row("modules by expression", lora={"target_modules": r".*layer\.\d+\.attention\.self\.(query|value)"}),
    Row("all linear modules", lora={"target_modules": "all-linear"}),
    Row("some layers", lora={"layers_to_transform": [1], "layers_pattern": "layer"}),
    Row("modules left out", lora={"exclude_modules": ["key"]}),
    Row("Gaussian start", lora={"init_lora_weights": "gaussian"}),
    Row("orthogonal start", lora={"init_lora_weights": "orthogonal"}),
    Row("PiSSA start", lora={"init_lora_weights": "pissa"}, refusal="init_lora_weights='pissa'"),
    Row("LoRA with biases", lora={"lora_bias": True}, warns=("Adapter .default",)),
    Row("IA3", peft=_ia3),
    Row("bottleneck, sequential", peft=_bottleneck("sequential"), arguments=SAVES, resume=(2, 6)),
    Row("bottleneck, parallel", peft=_bottleneck("parallel")),
    Row("a second adapter", wrapped=_second_adapter),
]

CUTS = [
    Row(
        "preset paper",
        light=LightConfig.preset("paper"),
        arguments={"max_steps": 8},
        refusal="has only 8 steps",
    ),
    Row("whole blocks", light=WHOLE_BLOCKS),
    Row(
        "whole blocks, LLaMA",
        LLAMA,
        light=WHOLE_BLOCKS,
    ),
    Row(
        "whole layers, LLaMA",
        LLAMA,
        light=LightConfig(replace(LIGHT.estimation, layer_score="cosine"), Budget(layers=0.5)),
        arguments=SAVES,
        resume=(2, 6),
    ),
    Row("only modules and ranks", light=_budget(heads=0, neurons=0)),
    Row("only the base", light=_budget(modules=0, ranks=0)),
    Row("equal heads of groups", LLAMA, light=_budget(kv_groups="equal", heads=0.5)),
    Row("parameters as the target", light=_target(parameters=0.6)),
    Row("memory as the target, LLaMA", LLAMA, light=_target(memory=0.9)),
]

VARIANTS = [*TRAINED_BESIDE, *TOKENS_ADDED, *HEADS, *OTHER_BASES, *DTYPES, *FORMS, *CUTS]
