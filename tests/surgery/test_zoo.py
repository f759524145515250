"""Every architecture: gated = cut = saved and loaded = merged; scores are those of gates put in by hand."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.forms import FORM_ROWS, FormRow
from tests.support.models import assert_identical, gated
from tests.support.probing import (
    agree,
    assert_cache_changes_nothing,
    outputs,
    passed_over,
    plan_gates,
    random_scores,
)
from tests.support.zoo import ANIMALS, BY_NAME, Animal
from torch import Tensor, nn

import lightpeft
from lightpeft import (
    Budget,
    ConfigError,
    EstimationConfig,
    Plan,
    Scores,
    SurgeryConfig,
    find_anatomy,
    make_plan,
)
from lightpeft.anatomy import FAMILIES, Units

UNEVEN = Budget(heads=0.4, neurons=0.4, modules=0.3, ranks=0.4, heads_scope="global", neurons_scope="global")
WITHOUT_LAYERS = replace(UNEVEN, layers=0.5)
ONE_BY_ONE = Budget(heads=0.4, neurons=0.0, modules=0.0, ranks=0.0, kv_groups="equal")
CASES = [
    pytest.param(animal, attention, id=f"{animal.name}-{attention}")
    for animal in ANIMALS
    for attention in animal.attentions
]
ONE_EACH_NAME = ["bert", "deberta-v2", "llama", "gpt2", "gpt_neox", "t5", "vit"]
OTHER_FORMS = [name for name in FORM_ROWS if name != "lora"]
ONE_EACH = [pytest.param(animal, animal.attentions[-1], id=animal.name) for animal in ANIMALS]
DROP = SurgeryConfig(fold_removed=False, compensate=False)
FOLD = SurgeryConfig(fold_removed=True, compensate=False)


def check_cut(
    animal: Animal,
    attention: str,
    budget: Budget,
    config: SurgeryConfig,
    folder: Path,
    padded: bool,
    form: FormRow = FORM_ROWS["lora"],
) -> Plan:
    """Cut and compare with the gated model; then save, load and merge."""
    model, batch = animal.with_peft(form.name, attention), animal.batch(padded=padded)
    plan = make_plan(random_scores(model), find_anatomy(model), budget)
    drops = not (config.fold_removed and form.linear)
    with (
        gated(model.get_base_model(), plan_gates(animal, model, plan, ranks=drops)),
        passed_over(model, plan),
    ):
        expected = outputs(model, batch)
    whole = outputs(model, batch)
    assert not torch.allclose(expected, whole, atol=1e-3)
    lightpeft.cut(model, plan, batch=batch, config=config)
    agree(outputs(model, batch), expected)
    lightpeft.save(model, folder)
    loaded = lightpeft.load(folder, base=animal.build(attention))
    assert_identical(loaded.state_dict(), model.state_dict())
    agree(outputs(loaded, batch), expected)
    if form.linear:
        agree(outputs(copy.deepcopy(loaded).merge_and_unload(), batch), expected)
    else:
        with pytest.raises(ConfigError, match="non-linearity"):
            loaded.merge_and_unload()
    return plan


def test_the_zoo_has_every_family() -> None:
    assert {animal.model_type or animal.name for animal in ANIMALS} | {
        "mbart",
        "mt5",
        "clip_text_model",
        "clip_vision_model",
    } == set(FAMILIES)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize(("animal", "attention"), CASES)
def test_gated_cut_loaded_and_merged_agree(
    animal: Animal, attention: str, padded: bool, tmp_path: Path
) -> None:
    plan = check_cut(animal, attention, UNEVEN, FOLD if padded else DROP, tmp_path, padded)
    assert any(len(layer.heads) < layer.head_count for layer in plan.layers)


@pytest.mark.parametrize(("animal", "attention"), CASES)
def test_whole_layers_may_go(animal: Animal, attention: str, tmp_path: Path) -> None:
    padded = attention == animal.attentions[0]
    plan = check_cut(animal, attention, WITHOUT_LAYERS, FOLD if padded else DROP, tmp_path, padded)
    assert plan.skipped_layers


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize("animal", ONE_EACH_NAME)
def test_whole_layers_may_go_with_every_form_of_peft(animal: str, form: str, tmp_path: Path) -> None:
    chosen = BY_NAME[animal]
    check_cut(chosen, chosen.attentions[-1], WITHOUT_LAYERS, FOLD, tmp_path, True, FORM_ROWS[form])


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize(("animal", "attention"), CASES)
def test_every_form_of_peft_follows_the_cut(
    animal: Animal, attention: str, form: str, tmp_path: Path
) -> None:
    plan = check_cut(animal, attention, UNEVEN, FOLD, tmp_path, True, FORM_ROWS[form])
    assert plan.removed_modules
    assert any(0 < len(module.ranks) < module.rank_count for module in plan.modules)


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize("animal", ONE_EACH_NAME)
def test_what_goes_of_every_form_may_be_dropped(animal: str, form: str, tmp_path: Path) -> None:
    chosen = BY_NAME[animal]
    check_cut(chosen, chosen.attentions[-1], UNEVEN, DROP, tmp_path, False, FORM_ROWS[form])


@pytest.mark.parametrize(
    ("animal", "attention"),
    [case for case in CASES if any(o.group > 1 and o.splits for o in case.values[0].outs)],
)
def test_equal_numbers_of_query_heads_may_go_from_every_group(
    animal: Animal, attention: str, tmp_path: Path
) -> None:
    plan = check_cut(animal, attention, ONE_BY_ONE, FOLD, tmp_path, padded=True)
    group = animal.outs[0].group
    for layer in plan.layers:
        per_group = [
            sum(head // group == g for head in layer.heads) for g in range(layer.head_count // group)
        ]
        assert len(set(per_group)) == 1
        assert 0 < per_group[0] < group


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize(("animal", "attention"), ONE_EACH)
def test_a_whole_sub_layer_may_go(animal: Animal, attention: str, kind: str, tmp_path: Path) -> None:
    model, batch = animal.with_lora(attention), animal.batch(padded=True)
    scores = random_scores(model)
    values = list(getattr(scores, kind))
    victim = max(index for index, value in enumerate(values) if len(value)) if any(map(len, values)) else None
    if victim is None:
        pytest.skip("no such units")
    values[victim] = values[victim] * 0
    share = 0.5
    budget = Budget(
        **{"heads": 0.0, "neurons": 0.0, kind: share}, min_heads=0, min_neurons=0,
        heads_scope="global", neurons_scope="global", modules=0.0, ranks=0.0,
    )  # fmt: skip
    changed = Scores(**vars(scores) | {kind: tuple(values)})
    plan = make_plan(changed, find_anatomy(model), budget)
    removed = not getattr(plan.layers[victim], kind)
    assert removed == (kind in animal.whole)
    with gated(model.get_base_model(), plan_gates(animal, model, plan, ranks=False)):
        expected = outputs(model, batch)
    lightpeft.cut(model, plan, batch=batch, config=FOLD)
    agree(outputs(model, batch), expected)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path), base=animal.build(attention))
    agree(outputs(loaded, batch), expected)
    if animal.generates:
        assert_cache_changes_nothing(model, batch)


@pytest.mark.parametrize(("animal", "attention"), [case for case in CASES if case.values[0].generates])
def test_generation_with_a_cache_is_generation_without(animal: Animal, attention: str) -> None:
    model = animal.with_lora(attention)
    lightpeft.cut(model, make_plan(random_scores(model), find_anatomy(model), UNEVEN))
    assert_cache_changes_nothing(model, animal.batch(padded=True))


@contextmanager
def open_gates(animal: Animal, base: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Gates of 1 with gradients in front of every output projection, put in by hand."""
    gates, hooks = {}, []

    def multiply(gate: Tensor, units: int):  # type: ignore[no-untyped-def]
        return lambda _module, args: (args[0] * gate.repeat_interleave(args[0].shape[-1] // units), *args[1:])

    for outs in animal.outs:
        for layer in range(outs.layers):
            name = outs.path.format(layer)
            gates[name] = torch.ones(outs.units, requires_grad=True)
            hook = multiply(gates[name], outs.units)
            hooks.append(base.get_submodule(name).register_forward_pre_hook(hook))
    yield gates
    for handle in hooks:
        handle.remove()


@pytest.mark.parametrize(("animal", "attention"), ONE_EACH)
def test_scores_are_the_gradients_of_gates(animal: Animal, attention: str) -> None:
    model, batch = animal.with_lora(attention), animal.batch(padded=True, labels=True)
    model.train()
    with open_gates(animal, model.get_base_model()) as gates:
        model(**batch).loss.backward()
    model.zero_grad()
    config = EstimationConfig(steps=1, base_score="taylor", module_score="activation", rank_score="taylor")
    scores = lightpeft.estimate(model, [batch], config, learning_rate=1e-9)
    for layer, heads, neurons in zip(find_anatomy(model).layers, scores.heads, scores.neurons, strict=True):
        for units, found in ((layer.attention, heads), (layer.ffn, neurons)):
            if units is not None:
                expected = gates[units.out].grad
                assert expected is not None
                torch.testing.assert_close(found, expected.abs(), rtol=1e-3, atol=1e-6)
    assert all(torch.isfinite(values).all() for values in scores.means.values())


def test_a_torn_kv_group_is_refused_before_anything_is_cut() -> None:
    model = BY_NAME["llama"].with_lora()
    plan = make_plan(random_scores(model), find_anatomy(model), UNEVEN)
    layers = (lightpeft.plan.LayerPlan(0, "layer 0", (0, 2, 3), 8, tuple(range(48)), 48), *plan.layers[1:])
    torn = Plan(**vars(plan) | {"layers": layers})
    with pytest.raises(lightpeft.PlanError, match=r"layer 0.*\[1, 2\].*whole groups of 2"):
        lightpeft.cut(model, torn)


def test_an_uneven_kv_group_that_slips_through_is_caught_by_the_verification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = BY_NAME["llama"].with_lora()
    before = outputs(model, BY_NAME["llama"].batch(padded=True))
    plan = make_plan(random_scores(model), find_anatomy(model), UNEVEN)
    layers = (plan.layers[0], lightpeft.plan.LayerPlan(1, "layer 1", (0, 2, 3), 8, tuple(range(48)), 48))
    monkeypatch.setattr(Units, "check", lambda *_: None)
    with pytest.raises(lightpeft.VerificationError, match="layer 1: the model does not run"):
        lightpeft.cut(model, Plan(**vars(plan) | {"layers": layers}))
    agree(outputs(model, BY_NAME["llama"].batch(padded=True)), before)


def test_a_stale_head_count_of_deberta_is_caught_by_the_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeBERTa computes wrong numbers with a stale head count, without an error of its own."""
    animal = BY_NAME["deberta-v2"]
    model, batch = animal.with_lora("eager"), animal.batch(padded=False)
    before = outputs(model, batch)
    (stack,) = FAMILIES["deberta-v2"]
    silent = replace(stack, attention=replace(stack.attention, follow={}))
    monkeypatch.setitem(FAMILIES, "deberta-v2", (silent,))
    plan = make_plan(
        random_scores(model), find_anatomy(model), Budget(heads=0.5, neurons=0, modules=0, ranks=0)
    )
    with pytest.raises(lightpeft.VerificationError, match="layer 0"):
        lightpeft.cut(model, plan, batch=batch)
    agree(outputs(model, batch), before)
