"""Whole layers in plans: which go by a share of them, what is then ranked, and what is refused."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from lightpeft import Anatomy, Budget, Plan, PlanError, Scores, find_anatomy, make_plan
from lightpeft.planning import layer_losses, limits
from tests.support.anatomies import attention_units, ffn_units
from tests.support.anatomies import layer as plain_layer
from tests.support.probing import random_scores
from tests.support.zoo import BY_NAME

LAYERS_ALONE = Budget(heads=0, neurons=0, modules=0, ranks=0)


def anatomy_of(count: int, stays: Sequence[int] = ()) -> Anatomy:
    """Layers of 4 heads and 8 neurons, some of which cannot be skipped."""
    layers = []
    for i in range(count):
        names = (f"layers.{i}.{one}" for one in ("q", "k", "v", "o", "up", "down"))
        q, k, v, o, up, down = names
        one = plain_layer(i, attention_units(q, k, v, o, 4, 8), ffn_units(up, down, 8))
        layers.append(replace(one, stays="it makes something") if i in stays else one)
    return Anatomy("bert", tuple(layers))


def scores_of(anatomy: Anatomy, layers: Sequence[float] = (), modules: int = 0) -> Scores:
    """Units that are worth more with each layer; `modules` PEFT modules in each layer."""
    names = [f"layers.{layer.index}.m{i}" for layer in anatomy.layers for i in range(modules)]
    return Scores(
        heads=tuple(torch.full((4,), 1.0 + layer.index) for layer in anatomy.layers),
        neurons=tuple(torch.full((8,), 1.0 + layer.index) for layer in anatomy.layers),
        ranks={name: torch.ones(2) for name in names},
        modules={name: 1.0 + i for i, name in enumerate(names)},
        steps=1,
        methods={"base": "fisher", "module": "activation", "rank": "taylor", "layer": "cosine"},
        layers=tuple(layers),
    )


def skipped(plan: Plan) -> list[int]:
    return [layer.index for layer in plan.layers if layer.skipped]


@pytest.mark.parametrize(
    ("share", "layers", "expected"),
    [
        (0.0, (), []),
        (0.5, (), [0, 1]),
        (0.5, (4.0, 1.0, 3.0, 2.0), [1, 3]),
        (0.25, (1.0, 1.0, 1.0, 1.0), [0]),
        (0.12, (), []),
        (0.75, (4.0, 1.0, 3.0, 2.0), [1, 2, 3]),
    ],
)
def test_the_layers_that_lose_least_go(share: float, layers: Sequence[float], expected: list[int]) -> None:
    """By the scores of layers, or else by the sums of what is in them; ties go to the lower index."""
    anatomy = anatomy_of(4)
    plan = make_plan(scores_of(anatomy, layers), anatomy, replace(LAYERS_ALONE, layers=share))
    assert skipped(plan) == expected
    assert all(layer.heads == layer.neurons == () for layer in plan.layers if layer.skipped)
    assert all(len(layer.heads) == 4 for layer in plan.layers if not layer.skipped)
    assert plan.counts.layers.cut == len(expected)
    assert {unit for unit in plan.cut_units() if unit[0] == "layer"} == plan.cut_by_kind()["layers"]
    assert (plan.counts.heads.cut, plan.counts.neurons.cut) == (4 * len(expected), 8 * len(expected))
    assert Plan.from_json(plan.to_json()) == plan


def test_the_other_shares_are_of_what_is_left() -> None:
    anatomy = anatomy_of(4)
    budget = Budget(heads=0.5, neurons=0.25, modules=0.75, ranks=0, layers=0.5, neurons_scope="layer")
    plan = make_plan(scores_of(anatomy, modules=2), anatomy, budget)
    assert [len(layer.heads) for layer in plan.layers] == [0, 0, 2, 2]
    assert [len(layer.neurons) for layer in plan.layers] == [0, 0, 6, 6]
    assert [module.name for module in plan.kept_modules] == ["layers.3.m0", "layers.3.m1"]
    assert plan.reasons == (
        "heads: 12 of 16 go: the 8 in skipped layers, and in each layer the lowest by fisher",
        "neurons: 20 of 32 go: the 16 in skipped layers, and in each layer the lowest by fisher",
        "PEFT modules: 6 of 8 go: the 4 in skipped layers, and the 2 lowest by activation (cut up to 6, "
        "kept from 7)",
        "ranks: 12 of 16 go: 12 with their modules, and 0 of the other 4, the lowest by taylor",
        "layers: 2 of 4 go, the lowest by cosine (cut up to 24, kept from 36)",
    )
    assert "\n  layer 0: skipped\n  layer 1: skipped\n  layer 2: heads 2/4" in plan.describe()


def test_modules_of_skipped_layers_go_beyond_their_share() -> None:
    anatomy = anatomy_of(4)
    budget = replace(LAYERS_ALONE, layers=0.75, frozen_layers=2)
    plan = make_plan(scores_of(anatomy, (1, 2, 9, 3), modules=1), anatomy, budget)
    assert [module.name for module in plan.kept_modules] == ["layers.2.m0"]
    assert "the 3 in frozen or skipped layers" in plan.reasons[2]


def test_the_scores_of_layers_are_on_the_scale_of_those_of_units() -> None:
    anatomy = anatomy_of(3)
    sums = [12.0, 24.0, 36.0]
    assert scores_of(anatomy).layer_losses() == pytest.approx(sums)
    losses = scores_of(anatomy, (0.1, 0.3, 0.2)).layer_losses()
    assert math.fsum(losses) == pytest.approx(math.fsum(sums))
    assert losses == pytest.approx([12.0, 36.0, 24.0])


def test_a_layer_goes_with_its_cross_attention() -> None:
    """And each stack keeps one: of two decoder layers that lose least, only one goes."""
    model = BY_NAME["bart"].with_lora()
    anatomy = find_anatomy(model)
    assert [len(stack) for stack in anatomy.stacks] == [2, 2]
    own = tuple(9.0 if layer.module.startswith("model.encoder") else 1.0 for layer in anatomy.layers)
    scores = replace(random_scores(model), layers=own)
    parts = [
        loss
        for loss, one in zip(scores.layer_losses(), anatomy.layers, strict=True)
        if one.name in ("decoder 0", "decoder 0 cross-attention")
    ]
    assert layer_losses(scores, anatomy)["model.decoder.layers.0"] == pytest.approx(sum(parts))
    plan = make_plan(scores, anatomy, replace(LAYERS_ALONE, layers=0.5))
    assert [layer.name for layer in plan.layers if layer.skipped] == [
        "encoder 0",
        "decoder 0",
        "decoder 0 cross-attention",
    ]
    assert plan.counts.layers == (2, 4)


@pytest.mark.parametrize(
    ("share", "stays", "message"),
    [
        (
            0.9,
            (),
            "asks for 4 of 4 layers that can be skipped, but one of each stack stays, so at most 3",
        ),
        (0.1, (0, 1, 2, 3), "no layer of bert can be skipped: it makes something"),
    ],
)
def test_what_cannot_be_skipped_is_refused(share: float, stays: Sequence[int], message: str) -> None:
    anatomy = anatomy_of(4, stays)
    with pytest.raises(PlanError, match=message):
        make_plan(scores_of(anatomy), anatomy, replace(LAYERS_ALONE, layers=share))


def test_layers_that_stay_are_none_of_the_share_and_said_before_a_run() -> None:
    anatomy, budget = anatomy_of(4, stays=(0, 1)), replace(LAYERS_ALONE, layers=0.5)
    assert skipped(make_plan(scores_of(anatomy), anatomy, budget)) == [2]
    assert limits(anatomy, budget)[0] == "layer 0-1: not skipped, because it makes something"
    assert limits(anatomy, LAYERS_ALONE) == []


def test_a_share_of_less_than_half_a_layer_is_said_before_a_run() -> None:
    assert limits(anatomy_of(4), replace(LAYERS_ALONE, layers=0.12)) == [
        "no layer is skipped: 0.12 of 4 (budget.layers) is less than half of one"
    ]


def test_skipping_every_layer_with_a_module_is_refused_by_name() -> None:
    """The only modules are in the two layers that lose least."""
    anatomy = anatomy_of(4)
    scores = scores_of(anatomy, modules=1)
    low = [name for name in scores.ranks if name < "layers.2"]
    ranks, modules = {name: scores.ranks[name] for name in low}, {name: scores.modules[name] for name in low}
    with pytest.raises(PlanError, match=r"budget\.layers=0\.5 and .* leave nothing of 2 PEFT modules"):
        make_plan(replace(scores, ranks=ranks, modules=modules), anatomy, replace(LAYERS_ALONE, layers=0.5))


def test_scores_of_another_number_of_layers_are_refused() -> None:
    with pytest.raises(PlanError, match="the scores are for 2 layers, the model has 4"):
        make_plan(scores_of(anatomy_of(4), (1.0, 2.0)), anatomy_of(4), Budget())


def test_halves_agree_about_layers_too() -> None:
    anatomy = anatomy_of(4)
    halves = tuple(scores_of(anatomy, layers) for layers in ((1, 2, 9, 9), (9, 1, 2, 9)))
    whole = replace(scores_of(anatomy, (1, 2, 3, 4)), scored_steps=2, halves=halves)
    plan = make_plan(whole, anatomy, replace(LAYERS_ALONE, layers=0.5))
    assert plan.evidence is not None
    found = {one.kind: one.share for one in plan.evidence.agreements}
    assert found["layers"] == 0.5
