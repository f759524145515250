"""The map from trained parameters to layers: complete, disjoint, and where one would look for them."""

import re
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tests.audit.vectors import layer_map
from tests.support.forms import FORM_ROWS
from tests.support.zoo import BY_NAME, Animal

from lightpeft.audit import AuditError
from lightpeft.audit.policies.layers import LayerMap, map_layers

ANIMALS = ("bert", "roberta", "llama")
TASKS = {"text": "SEQ_CLS", "causal": "CAUSAL_LM"}
PROMPTS = {
    "prompt tuning": lambda task: PromptTuningConfig(task_type=task, num_virtual_tokens=4),
    "P-tuning": lambda task: PromptEncoderConfig(task_type=task, num_virtual_tokens=4, encoder_hidden_size=8),
    "prefix tuning": lambda task: PrefixTuningConfig(task_type=task, num_virtual_tokens=4),
}


def with_form(animal: Animal, form: str, **options: Any) -> PeftModel:
    """A form of PEFT as users put it on: with the head in `modules_to_save` where there is one."""
    base, task = animal.build(), TASKS[animal.task]
    if form in PROMPTS:
        return get_peft_model(base, PROMPTS[form](task))
    config = IA3Config() if form == "ia3" else FORM_ROWS[form].config(animal, base, 3)
    config.task_type = task
    for name, value in options.items():
        setattr(config, name, value)
    return get_peft_model(base, config)


def check_partition(model: PeftModel, layers: LayerMap) -> None:
    names = [name for group in layers.groups for name in group.parameters]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == len(set(names))
    assert set(names) == set(trained)
    assert all(trained[name] is p for group in layers.groups for name, p in group.parameters.items())
    numbers = [group.number for group in layers.groups]
    assert numbers == sorted(set(numbers))
    assert sum(group.size for group in layers.groups) == sum(p.numel() for p in trained.values())
    assert len(layers.parameters) == len(trained)


@pytest.mark.parametrize("form", [*FORM_ROWS, "ia3"])
@pytest.mark.parametrize("name", ANIMALS)
def test_every_module_is_in_its_layer(name: str, form: str) -> None:
    model = with_form(BY_NAME[name], form)
    layers = map_layers(model)
    check_partition(model, layers)
    assert (layers.depth, layers.single) == (2, None)
    assert [group.title for group in layers.groups][:2] == ["layer 0", "layer 1"]
    for group in layers.groups:
        for parameter in group.parameters:
            number = re.search(r"\.layers?\.(\d)\.", parameter)
            assert (2 if number is None else int(number[1])) == group.number
    outputs = [group for group in layers.groups if group.number == layers.depth]
    assert [group.title for group in outputs] == ([] if name == "llama" else ["output layer"])
    assert all(".classifier." in name for group in outputs for name in group.parameters)


@pytest.mark.parametrize("form", PROMPTS)
@pytest.mark.parametrize("name", ANIMALS)
def test_a_prompt_is_one_layer(name: str, form: str) -> None:
    model = with_form(BY_NAME[name], form)
    layers = map_layers(model)
    check_partition(model, layers)
    assert layers.depth == 1
    assert layers.single is not None
    assert "is one layer for the whole model" in layers.single
    assert all(name.startswith("prompt_encoder.") for name in layers.groups[0].parameters)
    assert len(layers.groups) == (1 if name == "llama" else 2)
    assert not any(layers.is_lower(group) for group in layers.groups)


@pytest.mark.parametrize(
    ("part", "number"),
    [("embeddings", 0), ("pooler", 2), ("classifier", 2), ("layer.1.attention.output.LayerNorm", 1)],
)
def test_what_is_saved_whole_is_where_it_stands(part: str, number: int) -> None:
    model = with_form(BY_NAME["bert"], "lora", modules_to_save=["classifier", part])
    layers = map_layers(model)
    check_partition(model, layers)
    found = {g.number for g in layers.groups for name in g.parameters if f"{part}.modules_to_save" in name}
    assert found == {number}


def test_lora_on_embeddings_is_in_the_lowest_layer_and_biases_where_they_are() -> None:
    animal = BY_NAME["bert"]
    names = ["word_embeddings", "pooler.dense", "query"]
    model = get_peft_model(animal.build(), LoraConfig(task_type="SEQ_CLS", target_modules=names, bias="all"))
    layers = map_layers(model)
    check_partition(model, layers)
    where = {name: group.number for group in layers.groups for name in group.parameters}
    assert {number for name, number in where.items() if ".embeddings." in name} == {0}
    assert {number for name, number in where.items() if ".pooler." in name} == {2}
    assert where["base_model.model.bert.encoder.layer.1.output.LayerNorm.bias"] == 1


def test_layers_without_a_module_are_left_out_but_counted() -> None:
    animal = BY_NAME["llama"]
    model = get_peft_model(animal.build(), LoraConfig(target_modules=["model.layers.1.mlp.up_proj"]))
    layers = map_layers(model)
    assert layers.depth == 2
    assert [group.number for group in layers.groups] == [1]


def test_a_model_without_peft_and_two_stacks() -> None:
    model = BY_NAME["bart"].build()
    layers = map_layers(model)
    names = {name for group in layers.groups for name in group.parameters}
    assert names == {name for name, _ in model.named_parameters()}
    assert layers.depth == 4
    assert {g.number for g in layers.groups for name in g.parameters if ".decoder.layers.0." in name} == {2}


@pytest.mark.parametrize(("depth", "lower"), [(2, [0]), (3, [0, 1]), (6, [0, 1, 2])])
def test_the_lower_half(depth: int, lower: list[int]) -> None:
    layers = layer_map(depth)
    assert [group.number for group in layers.groups if layers.is_lower(group)] == lower


def test_nothing_trained_is_an_error() -> None:
    model = with_form(BY_NAME["bert"], "lora")
    model.requires_grad_(False)
    with pytest.raises(AuditError, match="no parameter of the model is trained"):
        map_layers(model)


def test_trained_parameters_that_are_nowhere_are_an_error() -> None:
    model = with_form(BY_NAME["bert"], "lora")
    model.stray = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(AuditError, match="stray is trained, but is in no layer"):
        map_layers(model)
