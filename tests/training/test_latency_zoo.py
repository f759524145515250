"""What every architecture's layers cost is measured, and the model is left as it was."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import hook_count, make_batch, save_base, snapshot, tiny_peft
from tests.support.runs import fresh_model
from tests.support.zoo import ANIMALS, Animal
from torch import nn

from lightpeft import Budget, find_anatomy
from lightpeft.costs import Costs, CostTable
from lightpeft.latency import measure, measure_costs
from lightpeft.latency.file import key_of
from lightpeft.planning.prices import Price


def measured(model: nn.Module, batch: Any, quantity: Any, budget: Budget) -> tuple[CostTable, Costs]:
    """A table, and its column; it fits the model, and fewer units never cost more."""
    table = measure_costs(model, batch, quantity, budget, {})
    found = {"inference": table.forward, "training": table.train, "memory": table.held}[quantity]
    assert found is not None
    for layer, costs in zip(find_anatomy(model).layers, found.layers, strict=True):
        for units, curve in ((layer.attention, costs.heads), (layer.ffn, costs.neurons)):
            if curve is not None:
                assert units is not None
                assert curve.counts[-1] == units.count
                assert curve.saved(0) >= curve.saved(units.count) == 0
    return table, found


@pytest.mark.parametrize("animal", [pytest.param(animal, id=animal.name) for animal in ANIMALS])
def test_what_is_measured_is_left_as_it_was(animal: Animal) -> None:
    model = animal.with_lora(animal.attentions[-1]).train()
    batch = animal.batch(padded=True, labels=True)
    model(**batch)  # transformers puts hooks of its own in at a first call
    anatomy, before, hooks = find_anatomy(model), snapshot(model), hook_count(model)
    random = torch.get_rng_state()
    table, found = measured(model, batch, "training", Budget())
    assert found.whole > 0
    assert any(layer.whole > 0 for layer in found.layers)
    assert CostTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert (find_anatomy(model), hook_count(model)) == (anatomy, hooks)


def test_layers_hold_more_the_wider_they_are(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path)
    held = measured(model, make_batch("bert", labels=True), "memory", Budget())[1]
    for layer in held.layers:
        assert layer.bare < layer.whole
        for curve in (layer.heads, layer.neurons):
            assert curve is not None
            assert list(curve.costs) == sorted(set(curve.costs))
    assert held.rest > 0


def test_modules_hold_less_in_a_narrow_layer(tmp_path: Path) -> None:
    """They read and write the units that go, so a layer with its modules saves more than a bare one."""
    model, batch = tiny_peft("bert", tmp_path), make_batch("bert", labels=True)
    for layer in measured(model, batch, "memory", Budget())[1].layers:
        for curve, modules in ((layer.heads, layer.heads_peft), (layer.neurons, layer.neurons_peft)):
            assert curve is not None
            assert modules is not None
            assert modules.counts[-1] == curve.counts[-1]
            fewest = modules.counts[0]
            assert 0 < modules.saved(fewest) < layer.whole - layer.bare
            bare, with_modules = (Price(layer, 1.0, share) for share in (0.0, 1.0))
            kind = "heads" if curve is layer.heads else "neurons"
            assert with_modules.saved(kind, fewest) - bare.saved(kind, fewest) == modules.saved(fewest)


@pytest.mark.parametrize("quantity", ["memory", "training"])
def test_a_last_layer_for_the_first_token_is_priced_as_such(quantity: Any, tmp_path: Path) -> None:
    """What the narrowing saves is in no layer, so that shares are of plain PEFT's cost."""
    model, batch = tiny_peft("bert", tmp_path), make_batch("bert", labels=True)
    hooks = hook_count(model)
    table = measure_costs(model, batch, quantity, Budget(), {}, narrows=True)
    found = table.held if quantity == "memory" else table.train
    assert found is not None
    assert CostTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert hook_count(model) == hooks
    assert found.saved >= 0
    if quantity == "memory":
        plain = measured(model, batch, quantity, Budget())[1]
        assert found.whole == plain.whole
        assert found.saved > 0
        assert found.layers[-1].whole < plain.layers[-1].whole
        assert found.layers[0].whole == plain.layers[0].whole


def test_the_key_knows_model_batch_and_device(tmp_path: Path) -> None:
    model, batch = tiny_peft("bert", tmp_path), make_batch("bert")
    key = key_of(model, batch, "inference", Budget())
    assert json.loads(json.dumps(key)) == key
    longer = {name: torch.cat([value, value], 1) for name, value in batch.items()}
    others = [
        key_of(model, longer, "inference", Budget()),
        key_of(model, batch, "memory", Budget()),
        key_of(model, batch, "inference", Budget(kv_groups="equal")),
        key_of(fresh_model(save_base("bert", tmp_path / "other"), rank=2), batch, "inference", Budget()),
    ]
    assert all(other != key for other in others)


def test_measuring_is_timed_by_the_clock_of_what_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is charged for it in the seconds that its steps are priced in."""
    ticks = itertools.count()
    monkeypatch.setattr(measure, "_now", lambda _device: float(next(ticks)))
    table = measure_costs(
        tiny_peft("bert", tmp_path), make_batch("bert", labels=True), "training", Budget(), {}
    )
    assert table.train is not None
    assert table.train.whole == 2.0
    assert table.seconds == next(ticks) - 1
