"""Layers that are skipped: what else in transformers goes by layers, what is refused, and the ways out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.models import assert_identical
from tests.support.probing import agree, outputs, random_scores
from tests.support.zoo import BY_NAME, Animal

import lightpeft
from lightpeft import Budget, LightTasks, Plan, PlanError, find_anatomy, make_plan
from lightpeft.errors import AnatomyError, CheckpointError, VerificationError
from lightpeft.surgery import SkippedLayer

LAYERS_ALONE = Budget(heads=0, neurons=0, modules=0, ranks=0, layers=0.5)
DEEP = {"num_hidden_layers": 4}


def without(model: PeftModel, *victims: str) -> Plan:
    """A plan that skips these layers, given by the ends of their modules' names, and cuts nothing else."""
    anatomy = find_anatomy(model)
    losses = tuple(0.1 if layer.module.endswith(victims) else 1.0 for layer in anatomy.layers)
    share = len(victims) / len(anatomy.skippable)
    plan = make_plan(
        replace(random_scores(model), layers=losses), anatomy, replace(LAYERS_ALONE, layers=share)
    )
    assert all(anatomy.layers[layer.index].module.endswith(victims) for layer in plan.skipped_layers)
    return plan


def lowest(animal: Animal) -> str:
    """The layer that a key-value cache asks for its length, or of T5 the lowest that can go."""
    return {"bart": "decoder.layers.0", "t5": "decoder.block.1"}.get(animal.name, ".0")


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon (alibi)", "gpt_neo", "opt", "bart", "t5"])
def test_a_cache_counts_the_tokens_of_a_skipped_layer(name: str) -> None:
    """The positions of a second call follow from the cache alone."""
    animal = BY_NAME[name]
    model = animal.with_lora(animal.attentions[0])
    lightpeft.cut(model, without(model, lowest(animal)))
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    key, more = ("input_ids", {})
    if animal.task == "seq2seq":
        key, more = ("decoder_input_ids", {"input_ids": ids.flip(1)})
    whole = model(**{key: ids}, **more).logits
    first = model(**{key: ids[:, :5]}, **more, use_cache=True)
    assert first.past_key_values.get_seq_length() == 5
    rest = model(**{key: ids[:, 5:]}, **more, past_key_values=first.past_key_values).logits
    agree(rest, whole[:, 5:])


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "bart", "t5"])
def test_hidden_states_are_recorded_and_training_goes_on(name: str) -> None:
    """Also with gradient checkpointing; the optimizer lets go of what is in the layer."""
    animal = BY_NAME[name]
    model = animal.with_lora("eager")
    batch = animal.batch(padded=True, labels=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before = model(**batch, output_hidden_states=True)
    before.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    plan = without(model, lowest(animal))
    lightpeft.cut(model, plan, optimizer)
    recorded = "decoder_hidden_states" if animal.task == "seq2seq" else "hidden_states"
    states = model(**batch, output_hidden_states=True)[recorded]
    assert len(states) == len(before[recorded]) == 3
    if name != "t5":  # what T5's last block puts out is recorded after the norm above it
        assert torch.equal(states[0], states[1])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, trained))
    model.train()
    model.get_base_model().activation_checkpointing_enable()
    model.enable_input_require_grads()
    model(**batch).loss.backward()
    assert all(p.grad is not None for p in trained)
    optimizer.step()


def test_a_skipped_layer_is_empty_and_keeps_its_names_and_its_class() -> None:
    model = BY_NAME["mixtral"].with_lora()
    base = model.get_base_model()
    kind, names = type(base.model.layers[0]), set(base.state_dict())
    lightpeft.cut(model, without(model, ".0"))
    layer = base.model.layers[0]
    assert type(layer) is kind
    assert isinstance(layer.forward, SkippedLayer)
    assert {name for name in names if "lora" not in name and "base_layer" not in name} <= set(
        base.state_dict()
    )
    assert sum(p.numel() for p in layer.parameters()) == 0
    assert (find_anatomy(model).layers[0].heads, find_anatomy(model).layers[0].parameters()) == (0, 0)
    assert not [name for name, _ in model.named_parameters() if "layers.0." in name and "lora" in name]


def test_a_cut_that_fails_puts_the_layer_back(monkeypatch: pytest.MonkeyPatch) -> None:
    animal = BY_NAME["bert"]
    model, batch = animal.with_lora(), animal.batch(padded=True)
    before, state = outputs(model, batch), {k: v.clone() for k, v in model.state_dict().items()}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    monkeypatch.setattr(SkippedLayer, "__call__", lambda _self, hidden, *_, **__: hidden + 1)
    with pytest.raises(VerificationError, match="layer 0"):
        lightpeft.cut(model, without(model, ".0"), batch=batch)
    assert_identical(model.state_dict(), state)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    agree(outputs(model, batch), before)


def test_layers_that_make_what_others_are_given_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's lowest blocks make the position bias of all: planning knows, and else the cut finds out."""
    animal = BY_NAME["t5"]
    model, batch = animal.with_lora("eager"), animal.batch(padded=True)
    anatomy = find_anatomy(model)
    assert anatomy.skippable == ("encoder.block.1", "decoder.block.1")
    assert anatomy.layers[0].describe().endswith("cannot be skipped")
    with pytest.raises(
        PlanError, match=r"encoder 0 cannot be skipped: it computes the relative position bias"
    ):
        lightpeft.cut(model, skipping(anatomy, 0))
    monkeypatch.setattr("lightpeft.anatomy.model._why_it_stays", lambda _: None)
    with pytest.raises(AnatomyError, match=r"encoder.block.0 cannot be skipped.*the layers above are given"):
        lightpeft.cut(model.unload(), skipping(find_anatomy(model), 0), batch=batch)


def skipping(anatomy: Any, *indices: int) -> Plan:
    """A plan by hand."""
    layers = tuple(
        lightpeft.plan.LayerPlan(one.index, one.name, (), one.heads, (), one.neurons, skipped=True)
        if one.index in indices
        else lightpeft.plan.LayerPlan(
            one.index, one.name, tuple(range(one.heads)), one.heads, tuple(range(one.neurons)), one.neurons
        )
        for one in anatomy.layers
    )
    return Plan(anatomy.model_type, layers, (), Budget(), 0, ())


@pytest.mark.parametrize(
    ("name", "indices", "message"),
    [
        ("bert", (0, 1), "all of layer 0 to layer 1 would go; at least one stays"),
        ("bart", (0, 1), "all of encoder 0 to encoder 1 would go"),
        (
            "bart",
            (2,),
            "decoder 0 is to be skipped, but decoder 0 cross-attention, which is of one module, stays",
        ),
        ("bert", (0,), r"keeps the PEFT module bert\.encoder\.layer\.0\..* in a layer that it skips"),
    ],
)
def test_plans_that_cannot_be_are_refused(name: str, indices: tuple[int, ...], message: str) -> None:
    model = BY_NAME[name].with_lora()
    plan = skipping(find_anatomy(model), *indices)
    kept = make_plan(random_scores(model), find_anatomy(model), replace(LAYERS_ALONE, layers=0)).modules
    with pytest.raises(PlanError, match=message):
        lightpeft.cut(model, replace(plan, modules=kept))


def test_the_ways_out(tmp_path: Path) -> None:
    """Loaded over a base in memory, by `save_pretrained`, and merged; but as no stock adapter."""
    animal = BY_NAME["llama"]
    model, batch = animal.with_lora(), animal.batch(padded=True)
    lightpeft.cut(model, without(model, ".0"), batch=batch)
    expected = outputs(model, batch)
    model.save_pretrained(tmp_path / "light")
    base = animal.build()
    whole = outputs(base, batch)
    tasks = LightTasks(base)
    agree(outputs(tasks.add("one", tmp_path / "light"), batch), expected)
    agree(outputs(base, batch), whole)
    lightpeft.export_merged(tmp_path / "light", tmp_path / "merged", base=animal.build())
    agree(outputs(lightpeft.load_merged(tmp_path / "merged"), batch), expected)
    with pytest.raises(CheckpointError, match="skips layer 0, which no stock adapter can"):
        lightpeft.export_full_adapter(tmp_path / "light", tmp_path / "stock", base=animal.build())


def test_a_checkpoint_that_does_not_say_how_a_layer_returns_is_damaged(tmp_path: Path) -> None:
    model = BY_NAME["bert"].with_lora()
    lightpeft.cut(model, without(model, ".0"))
    folder = lightpeft.save(model, tmp_path / "light")
    from lightpeft.files import read_json, write_json

    value = read_json(folder / "pruning.json")
    for forms, message in (({}, "not known in which form"), ({"bert.encoder.layer.0": [1.5]}, "is damaged")):
        write_json(folder / "pruning.json", value | {"skipped": forms})
        with pytest.raises(CheckpointError, match=message):
            lightpeft.load(folder, base=BY_NAME["bert"].build(), check_files=False)
