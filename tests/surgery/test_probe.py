"""Probe cuts: what they verify really is the same model, and what they refuse really cannot be cut."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.anatomy.test_discovery import STRANGERS, places
from tests.support.models import gated
from tests.support.probing import agree, outputs
from tests.support.zoo import BY_NAME, Animal
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PreTrainedModel,
)

import lightpeft
from lightpeft import AnatomyError, Budget, Plan, find_anatomy
from lightpeft.anatomy import FAMILIES, UNPROBED, verdict_of
from lightpeft.anatomy import discovery as discovery_module
from lightpeft.plan import LayerPlan
from lightpeft.surgery import cut, probe_cuts, verify_discovered

ROWS = {animal.name: animal for animal in STRANGERS}
HEADS_REFUSED = {
    "codegen": "shape",  # four blocks, each with the queries, values and keys of a quarter of the heads
    "olmo2": "size of tensor",  # one norm over the queries of all heads
    "nystromformer": "groups=4",  # a convolution with one channel per head
}


def uneven_plan(model: nn.Module) -> Plan:
    """Every layer keeps another number of whole KV groups, and of neurons, drawn at random."""
    anatomy, generator = find_anatomy(model), torch.Generator().manual_seed(0)
    layers = []
    for layer in anatomy.layers:
        heads, neurons = list(range(layer.heads)), list(range(layer.neurons))
        units = layer.attention
        if units is not None and units.fixed is None and units.groups > 1:
            groups = torch.randperm(units.groups, generator=generator)[: 1 + layer.index % (units.groups - 1)]
            heads = [head for head in heads if head // units.group in groups.tolist()]
        elif units is not None and units.fixed is None:
            heads = heads[1 + layer.index :]
        if layer.ffn is not None:
            # As many as the model is wide, in one layer: widths alone then tell nothing apart.
            count = 32 if layer.index == 1 else 11
            neurons = sorted(torch.randperm(layer.neurons, generator=generator)[:count].tolist())
        layers.append(
            LayerPlan(layer.index, layer.name, tuple(heads), layer.heads, tuple(neurons), layer.neurons)
        )
    return Plan(anatomy.model_type, tuple(layers), (), Budget(), 0, ())


def gates_of(animal: Animal, base: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """0 for what the plan cuts, at the places that the row of the test names."""
    cuts: dict[str, tuple[int, ...]] = {}
    for layer, wanted in zip(find_anatomy(base).layers, plan.layers, strict=True):
        for units, kept in ((layer.attention, wanted.heads), (layer.ffn, wanted.neurons)):
            if units is not None:
                cuts[units.out] = kept
    gates = {}
    for outs in animal.outs:
        for index in range(outs.layers):
            name = outs.path.format(index)
            if name in cuts:
                linear = base.get_submodule(name)
                channels = getattr(linear, "in_features", None) or linear.nx
                units_alive = torch.zeros(outs.units)
                units_alive[list(cuts.pop(name))] = 1
                gates[name] = units_alive.repeat_interleave(channels // outs.units)
    assert not cuts
    return gates


@pytest.mark.parametrize("animal", STRANGERS, ids=lambda animal: animal.name)
def test_what_was_verified_can_be_cut_and_the_rest_stays(animal: Animal) -> None:
    for attention in animal.attentions:
        base, batch = animal.build(attention), animal.batch(padded=True)
        anatomy = verify_discovered(base)
        refused = [layer.attention and layer.attention.fixed for layer in anatomy.layers]
        if animal.name in HEADS_REFUSED:
            assert all(why and HEADS_REFUSED[animal.name] in why for why in refused)
        else:
            assert not any(refused)
        assert all(layer.ffn for layer in anatomy.layers if "cross" not in layer.name)
        plan = uneven_plan(base)
        whole = outputs(base, batch)
        with gated(base, gates_of(animal, base, plan)):
            expected = outputs(base, batch)
        assert not torch.allclose(whole, expected, atol=1e-3)
        cut(base, plan, batch=batch)
        agree(outputs(base, batch), expected)


@pytest.mark.parametrize("animal", STRANGERS, ids=lambda animal: animal.name)
def test_a_cut_model_is_read_like_the_whole_one(animal: Animal) -> None:
    base = animal.build(animal.attentions[0])
    before = verify_discovered(base)
    plan = uneven_plan(base)
    cut(base, plan)
    after = find_anatomy(base)
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    for layer, uncut, wanted in zip(after.layers, before.layers, plan.layers, strict=True):
        assert (layer.heads, layer.neurons) == (len(wanted.heads), len(wanted.neurons))
        assert [units.linears for units in layer.units] == [units.linears for units in uncut.units]


@pytest.mark.parametrize("name", ["ernie", "gptj", "granite", "deit", "marian"])
def test_all_neurons_of_a_layer_may_go(name: str) -> None:
    """Nothing is left then of the widths by which a feed-forward block is known."""
    animal = ROWS[name]
    base, batch = animal.build(animal.attentions[0]), animal.batch(padded=True)
    before = verify_discovered(base)
    plan = uneven_plan(base)
    first, *others = plan.layers
    plan = replace(plan, layers=(replace(first, neurons=()), *others))
    with gated(base, gates_of(animal, base, plan)):
        expected = outputs(base, batch)
    cut(base, plan, batch=batch)
    agree(outputs(base, batch), expected)
    assert find_anatomy(base).layers[0].neurons == 0
    assert [[units.linears for units in layer.units] for layer in find_anatomy(base).layers] == [
        [units.linears for units in layer.units] for layer in before.layers
    ]


@pytest.mark.parametrize("name", ["starcoder2", "marian", "esm"])
def test_a_discovered_model_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    animal = ROWS[name]
    model, batch = animal.with_lora(), animal.batch(padded=True)
    verify_discovered(model)
    plan = replace(uneven_plan(model), modules=_all_modules(model))
    cut(model, plan, batch=batch)
    expected = outputs(model, batch)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path), base=animal.build())
    agree(outputs(loaded, batch), expected)


def _all_modules(model: nn.Module) -> tuple[lightpeft.plan.ModulePlan, ...]:
    end = ".lora_A.default.weight"
    return tuple(
        lightpeft.plan.ModulePlan(
            key.removeprefix("base_model.model.").removesuffix(end), tuple(range(len(value))), len(value)
        )
        for key, value in model.state_dict().items()
        if key.endswith(end)
    )


def test_the_model_itself_is_not_touched_but_for_the_verdict() -> None:
    base = ROWS["gpt_bigcode"].build()
    weights = copy.deepcopy(base.state_dict())
    config, random = base.config.to_dict(), torch.get_rng_state()
    verify_discovered(base)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, weights[key]) for key, value in base.state_dict().items())
    assert base.config.to_dict() == config
    assert verdict_of(base) is not None


def test_one_probe_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    base = ROWS["esm"].build()
    first = verify_discovered(base)
    monkeypatch.setattr("lightpeft.surgery.probe.probe_cuts", None)
    assert verify_discovered(base) == first
    assert verify_discovered(BY_NAME["bert"].build()).model_type == "bert"


def test_a_fused_projection_gets_the_layout_that_verifies() -> None:
    blocks, groups = ROWS["gpt_bigcode"].build(), BY_NAME["gpt_neox"].build()
    groups.config.model_type = "stranger"
    assert find_anatomy(groups).layers[0].attention.fixed == UNPROBED  # type: ignore[union-attr]
    for base, layout, known in ((blocks, "blocks", None), (groups, "interleaved", "gpt_neox")):
        report = probe_cuts(base)
        assert set(report.verdict.layouts.values()) == {layout}
        assert not report.refused
        if known:
            expected = find_anatomy(BY_NAME[known].build())
            assert places(verify_discovered(base)) == places(expected)


@pytest.mark.parametrize(
    "name", ["bert", "llama", "gpt2", "t5", "falcon (grouped)", "mixtral", "vit", "clip"]
)
def test_known_architectures_verify_too(name: str) -> None:
    animal = BY_NAME[name]
    report = probe_cuts(animal.build(animal.attentions[-1]))
    assert report.refused == {}
    assert set(report.attentions) == set(animal.attentions) | {"eager"}


def test_units_that_are_fixed_for_a_known_reason_are_not_probed() -> None:
    """The only layer of each stack computes the position bias for all others."""
    shallow = replace(BY_NAME["t5"], options={**BY_NAME["t5"].options, "num_layers": 1})
    report = probe_cuts(shallow.build())
    assert report.verified == ("encoder neurons", "decoder neurons", "decoder cross heads")
    assert report.refused == {}


def test_a_classifier_without_a_padding_token_is_probed_like_its_base() -> None:
    config = AutoConfig.for_model("starcoder2", **ROWS["starcoder2"].options)
    config.pad_token_id = None
    assert probe_cuts(AutoModelForSequenceClassification.from_config(config)).refused == {}


def test_lora_on_the_model_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ROWS["esm"].with_lora()
    weights = copy.deepcopy(model.state_dict())
    assert probe_cuts(model).verified == ("layer heads", "layer neurons")
    monkeypatch.setattr(type(model.get_base_model().base_model), "_from_config", classmethod(_refuse))
    report = probe_cuts(model)
    assert (report.copy, report.refused) == ("a full copy with random weights", {})
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_wrong_row_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeBERTa computes wrong numbers with a stale head count, without an error of its own."""
    (stack,) = FAMILIES["deberta-v2"]
    silent = replace(stack, attention=replace(stack.attention, follow={}))
    monkeypatch.setitem(FAMILIES, "deberta-v2", (silent,))
    report = probe_cuts(BY_NAME["deberta-v2"].build("eager"))
    assert report.verified == ("layer neurons",)
    assert "layer 0" in report.refused["layer heads"]


def test_a_cut_that_shows_nowhere_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightpeft.surgery.probe.VISIBLE", 1e9)
    report = probe_cuts(BY_NAME["bert"].build())
    assert report.verified == ()
    assert all("changes no output" in why for why in report.refused.values())


class Sleepy(nn.Module):
    """An attention block that takes its heads from nowhere: whatever is cut, the forward pass fails."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.attention_head_size = old.attention_head_size
        self.query, self.key, self.value = old.query, old.key, old.value

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, None]:
        return (self.value(hidden_states) + torch.zeros(32), None)


def stranger_with_sleepy_layers() -> PreTrainedModel:
    base = BY_NAME["bert"].build()
    base.config.model_type = "stranger"
    for layer in base.bert.encoder.layer:
        layer.attention.self = Sleepy(layer.attention.self)
    return base


def test_a_model_that_its_configuration_does_not_rebuild_is_probed_on_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = stranger_with_sleepy_layers()
    monkeypatch.setattr(type(base.base_model), "_from_config", classmethod(_refuse))
    report = probe_cuts(base)
    assert report.copy == "a full copy with random weights"
    assert report.verified == ("layer neurons",)
    assert "layer 0" in report.refused["layer heads"]


def _refuse(*_: object, **__: object) -> None:
    raise TypeError("needs more")


def test_nothing_verified_is_an_error_that_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    base = stranger_with_sleepy_layers()
    monkeypatch.setattr(type(base.base_model), "_from_config", classmethod(_refuse))
    monkeypatch.setattr(discovery_module, "_ffns", lambda *_: iter(()))
    with pytest.raises(AnatomyError, match=r"'stranger'.*nothing could be verified.*layer heads could not"):
        verify_discovered(base)


def test_a_large_model_is_probed_on_few_layers_words_and_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightpeft.surgery.probe.SMALL", 0)
    animal = BY_NAME["bert"]
    deep = replace(animal, options={**animal.options, "num_hidden_layers": 9, "vocab_size": 3000})
    deep = replace(deep, options={**deep.options, "intermediate_size": 999})
    built, original = [], BertModel.__init__

    def remember(self: BertModel, config: BertConfig, *args: object, **kwargs: object) -> None:
        built.append((config.num_hidden_layers, config.vocab_size, config.intermediate_size))
        original(self, config, *args, **kwargs)

    base = deep.build()
    monkeypatch.setattr(BertModel, "__init__", remember)
    assert "2 of 9 layers, at most 256 neurons" in probe_cuts(base).describe()[0]
    assert set(built) == {(2, 256, 256)}
