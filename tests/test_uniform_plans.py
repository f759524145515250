"""Uniform plans: the same counts in every layer that shares them, the least scores of each layer gone."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from lightpeft import Anatomy, Budget, ConfigError, LightConfig, Plan, PlanError, Target, make_plan
from lightpeft.anatomy import Layer, Units
from lightpeft.planning import limits
from tests.support.anatomies import attention_units, ffn_units
from tests.test_plan import NOTHING, drawn, head_counts, neuron_counts, scores_of

UNIFORM = Budget(uniform=True)
HEADS, NEURONS = 12, 128


def stack(
    title: str, layers: int, first: int = 0, *, heads: int = HEADS, neurons: int = NEURONS, group: int = 1
) -> list[Layer]:
    """Layers whose numbers have keys of their own."""
    found = []
    for number in range(layers):
        names = [f"{title}.{number}.{linear}" for linear in ("q", "k", "v", "o", "up", "down")]
        attention = attention_units(*names[:4], heads, 8, group=group)
        ffn = ffn_units(*names[4:], neurons)
        found.append(
            Layer(
                first + number,
                f"{title} {number}",
                f"{title}.{number}",
                replace(attention, keys=((f"{title}_heads", "heads"),)),
                replace(ffn, keys=((f"{title}_width", "neurons"),)),
                192,
            )
        )
    return found


def anatomy_of(*layers: Layer) -> Anatomy:
    return Anatomy("bert", layers)


ENCODER = anatomy_of(*stack("layer", 4))


def plan_of(budget: Budget, anatomy: Anatomy = ENCODER, seed: int = 0, **options: object) -> Plan:
    return make_plan(drawn(anatomy, seed), anatomy, budget, **options)


def change(anatomy: Anatomy, index: int, kind: str, **values: object) -> Anatomy:
    """The same with other values of the heads or neurons of one layer."""
    layers = list(anatomy.layers)
    name = "attention" if kind == "heads" else "ffn"
    units: Units | None = getattr(layers[index], name)
    assert units is not None
    layers[index] = replace(layers[index], **{name: replace(units, **values)})
    return replace(anatomy, layers=tuple(layers))


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5, 0.8])
@pytest.mark.parametrize("align", [1, 32])
@pytest.mark.parametrize("seed", range(3))
def test_every_layer_keeps_its_best_in_equal_numbers(share: float, align: int, seed: int) -> None:
    scores = drawn(ENCODER, seed)
    budget = replace(UNIFORM, heads=share, neurons=share, align_neurons=align)
    plan = make_plan(scores, ENCODER, budget)
    assert len(set(head_counts(plan))) == 1
    assert len(set(neuron_counts(plan))) == 1
    assert neuron_counts(plan)[0] % align == 0
    assert abs(neuron_counts(plan)[0] - NEURONS * (1 - share)) <= max(1, align / 2)
    for kept, heads, neurons in zip(plan.layers, scores.heads, scores.neurons, strict=True):
        assert list(kept.heads) == heads.topk(len(kept.heads)).indices.sort().values.tolist()
        assert list(kept.neurons) == neurons.topk(len(kept.neurons)).indices.sort().values.tolist()


def test_it_is_the_plan_of_the_scope_layer_where_nothing_stands_in_its_way() -> None:
    uniform, layered = plan_of(UNIFORM), plan_of(replace(UNIFORM, uniform=False))
    assert uniform.layers == layered.layers
    assert Plan.from_json(uniform.to_json()) == uniform


def test_the_scope_upper_is_then_layer() -> None:
    plan = plan_of(replace(UNIFORM, heads_scope="upper", neurons_scope="upper"))
    assert plan.layers == plan_of(UNIFORM).layers
    assert "lowest third" not in plan.describe()


def test_floors_hold_and_no_whole_block_goes() -> None:
    plan = plan_of(replace(UNIFORM, heads=0.9, neurons=0.9, min_heads=0, min_neurons=0))
    assert set(head_counts(plan)) == {1}
    assert set(neuron_counts(plan)) == {13}
    with pytest.raises(PlanError, match=r"budget\.heads=0\.5 leaves 6 of 12 .* at least 8"):
        plan_of(replace(UNIFORM, heads=0.5, min_heads=8))


@pytest.mark.parametrize("kv_groups", ["whole", "equal"])
def test_kv_groups_go_in_equal_numbers(kv_groups: str) -> None:
    anatomy = anatomy_of(*stack("layer", 3, group=4))
    plan = plan_of(Budget(heads=0.4, uniform=True, kv_groups=kv_groups), anatomy)
    assert len(set(head_counts(plan))) == 1
    for layer in plan.layers:
        groups = {head // 4 for head in layer.heads}
        assert len(groups) == (2 if kv_groups == "whole" else 3)


@pytest.mark.parametrize(("share", "kept"), [(0.1, 12), (0.25, 8), (0.4, 8), (0.5, 6), (0.6, 6), (0.9, 1)])
def test_heads_stay_in_numbers_that_divide_the_width(share: float, kept: int) -> None:
    anatomy = ENCODER
    for index in range(4):
        anatomy = change(anatomy, index, "heads", divides=48 if share > 0.8 else 24)
    plan = plan_of(replace(UNIFORM, heads=share), anatomy)
    assert set(head_counts(plan)) == {kept}
    assert any("divides the width of" in said for said in limits(anatomy, UNIFORM))
    other = plan_of(replace(UNIFORM, heads=share, uniform=False), anatomy)
    assert abs(head_counts(other)[0] - HEADS * (1 - share)) <= 0.6


def test_a_floor_comes_before_the_nearest_number() -> None:
    anatomy = anatomy_of(*stack("layer", 1))
    anatomy = change(anatomy, 0, "heads", divides=24)
    assert head_counts(plan_of(replace(UNIFORM, heads=0.25, min_heads=9), anatomy)) == [12]


def test_what_the_configuration_cannot_say_stays_and_is_said_once() -> None:
    anatomy = ENCODER
    for index in range(4):
        anatomy = change(anatomy, index, "heads", unsaid="it derives their size")
    plan = plan_of(UNIFORM, anatomy)
    assert head_counts(plan) == [HEADS] * 4
    assert set(neuron_counts(plan)) == {85}
    assert limits(anatomy, UNIFORM) == ["layer 0-3: heads stay, because it derives their size"]
    assert limits(anatomy, Budget()) == []
    assert set(head_counts(plan_of(Budget(), anatomy))) == {8}


def test_units_stay_whose_number_others_share_that_stay() -> None:
    anatomy = change(ENCODER, 0, "heads", fixed="it makes the bias of all")
    assert head_counts(plan_of(UNIFORM, anatomy)) == [HEADS] * 4
    assert limits(anatomy, UNIFORM) == [
        "layer 0: heads stay, because it makes the bias of all",
        "layer 1-3: heads stay, because the configuration has one number for all, and those of layer 0 stay",
    ]


def test_units_stay_that_are_of_other_numbers_already() -> None:
    wide = stack("layer", 1, first=4, neurons=64)[0]
    anatomy = anatomy_of(*ENCODER.layers, replace(wide, name="layer 4", module="layer.4"))
    plan = plan_of(UNIFORM, anatomy)
    assert neuron_counts(plan) == [NEURONS] * 4 + [64]
    assert set(head_counts(plan)) == {8}


def test_an_encoder_and_a_decoder_have_numbers_of_their_own() -> None:
    anatomy = anatomy_of(*stack("encoder", 2), *stack("decoder", 2, first=2, heads=8, neurons=64))
    plan = plan_of(replace(UNIFORM, heads=0.5, neurons=0.5), anatomy)
    assert head_counts(plan) == [6, 6, 4, 4]
    assert neuron_counts(plan) == [64, 64, 32, 32]


@pytest.mark.parametrize("target", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("cuts", ["width", "mixed", "depth"])
def test_a_target_is_met_evenly(target: float, cuts: str) -> None:
    anatomy = anatomy_of(*stack("encoder", 3), *stack("decoder", 3, first=3))
    plan = plan_of(UNIFORM, anatomy, target=Target(parameters=target, cuts=cuts))
    for start in (0, 3):
        kept = [one for one in plan.layers[start : start + 3] if not one.skipped]
        assert len({len(one.heads) for one in kept}) == 1
        assert len({len(one.neurons) for one in kept}) == 1
    assert plan.target is not None
    assert plan.target.predicted <= target + (0.1 if cuts == "depth" else 0)


def test_a_target_keeps_to_numbers_that_divide_the_width() -> None:
    anatomy = ENCODER
    for index in range(4):
        anatomy = change(anatomy, index, "heads", divides=24)
    plan = plan_of(UNIFORM, anatomy, target=Target(parameters=0.55))
    assert 24 % head_counts(plan)[0] == 0
    assert len(set(head_counts(plan))) == 1


def test_layers_are_skipped_and_the_others_stay_alike() -> None:
    plan = plan_of(replace(UNIFORM, layers=0.5))
    kept = [layer for layer in plan.layers if not layer.skipped]
    assert len(kept) == 2
    assert {(len(layer.heads), len(layer.neurons)) for layer in kept} == {(8, 85)}


def test_layers_stay_that_the_configuration_cannot_leave_out() -> None:
    layers = [replace(layer, unsaid="they are counted otherwise") for layer in ENCODER.layers]
    anatomy, budget = anatomy_of(*layers), replace(UNIFORM, layers=0.5)
    with pytest.raises(PlanError, match="no layer of bert can be skipped: they are counted otherwise"):
        plan_of(budget, anatomy)
    assert limits(anatomy, budget) == ["layer 0-3: not skipped, because they are counted otherwise"]
    first = anatomy_of(layers[0], *ENCODER.layers[1:])
    assert not plan_of(budget, first).layers[0].skipped


@pytest.mark.parametrize("layers", [0.0, 0.5])
def test_a_model_of_which_nothing_can_go_is_refused(layers: float) -> None:
    anatomy = ENCODER
    for index in range(4):
        for kind in ("heads", "neurons"):
            anatomy = change(anatomy, index, kind, unsaid="nobody knows how")
    budget = replace(UNIFORM, layers=layers)
    if layers:
        assert plan_of(budget, anatomy).skipped_layers
        return
    with pytest.raises(PlanError, match=r"leaves nothing of bert to cut: heads stay, .* budget\.layers"):
        plan_of(budget, anatomy)


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_ranking_over_all_layers_together_is_no_uniform_plan(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"budget\.{kind}_scope=global"):
        Budget(uniform=True, **{f"{kind}_scope": "global"})
    with pytest.raises(ConfigError, match=r"budget\.neurons_scope=global"):
        replace(LightConfig.preset("paper").budget, uniform=True)


def test_old_plans_are_not_uniform() -> None:
    value = plan_of(replace(UNIFORM, uniform=False)).to_dict()
    del value["budget"]["uniform"]
    assert not Plan.from_dict(value).budget.uniform


def test_the_lowest_of_each_layer_go_whatever_their_size() -> None:
    """One layer of small scores loses no more than the others."""
    values: Sequence[torch.Tensor] = [torch.rand(HEADS) * 10.0**power for power in range(4)]
    neurons = [torch.rand(NEURONS) * 10.0**power for power in range(4)]
    plan = make_plan(scores_of(values, neurons), ENCODER, replace(Budget(**NOTHING), heads=0.5, uniform=True))
    for kept, scores in zip(plan.layers, values, strict=True):
        assert list(kept.heads) == scores.topk(6).indices.sort().values.tolist()
