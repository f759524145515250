"""Plans for a target from made-up costs."""

from dataclasses import replace

import pytest
import torch

from lightpeft import Anatomy, Budget, Plan, PlanError, Scores, Target, make_plan
from lightpeft.config import Cuts, Scope
from lightpeft.costs import Costs, CostTable, Curve, LayerCosts, Schedule
from lightpeft.planning import ESTIMATION_COST, Pricing
from tests.test_plan import anatomy_of, head_counts, neuron_counts, scores_of

LAYERS, HEADS, NEURONS = 4, 4, 16
ANATOMY = anatomy_of([HEADS] * LAYERS, [NEURONS] * LAYERS)
GLOBAL = Budget(heads_scope="global", neurons_scope="global", modules=0.5, ranks=0)


def costs(head: float = 1.0, neuron: float = 0.25, fixed: float = 2.0, peft: float = 1.0) -> Costs:
    """Four layers whose costs add up, and 4 beside them."""
    bare = HEADS * head + NEURONS * neuron + fixed
    heads = Curve((0, HEADS), (bare + peft - HEADS * head, bare + peft))
    neurons = Curve((0, NEURONS), (bare + peft - NEURONS * neuron, bare + peft))
    layer = LayerCosts(bare + peft, bare, heads, neurons)
    return Costs(4 + LAYERS * layer.whole, (layer,) * LAYERS)


def table(**columns: Costs) -> CostTable:
    return CostTable({}, 0.0, **{"forward": costs(), **columns}, weights=(2.0,) * LAYERS)


def drawn(seed: int = 0, modules: tuple[float, ...] = (1.0,) * LAYERS) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    names = [f"{layer}.{linear}" for layer in range(LAYERS) for linear in ("q", "up")]
    return scores_of(
        [torch.rand(HEADS, generator=generator) for _ in range(LAYERS)],
        [torch.rand(NEURONS, generator=generator) for _ in range(LAYERS)],
        {name: torch.ones(2) for name in names},
        {name: modules[int(name[0])] for name in names},
    )


def inference(share: float, budget: Budget = GLOBAL, scores: Scores | None = None) -> Plan:
    return make_plan(scores or drawn(), ANATOMY, budget, target=Pricing(Target(inference=share), table()))


def cost_of(plan: Plan, peft_kept: float) -> float:
    """Share of the whole, counted one by one."""
    heads, neurons = sum(head_counts(plan)), sum(neuron_counts(plan))
    return (4 + heads * 1.0 + neurons * 0.25 + LAYERS * (2.0 + peft_kept)) / (4 + LAYERS * 11.0)


@pytest.mark.parametrize("share", [0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_the_prediction_is_what_the_plan_costs_and_meets_the_target(seed: int, share: float) -> None:
    plan = inference(share, scores=drawn(seed))
    assert plan.target is not None
    assert plan.target.predicted == pytest.approx(cost_of(plan, peft_kept=0.5))
    assert share - 1 / 48 <= plan.target.predicted <= share
    assert f"target: {share:.3g} of plain PEFT's time of a forward pass; predicted" in plan.describe()


@pytest.mark.parametrize("align", [1, 4, 8])
def test_floors_and_alignment_hold(align: int) -> None:
    plan = inference(0.7, replace(GLOBAL, min_heads=2, align_neurons=align))
    assert min(head_counts(plan)) >= 2
    assert all(count % align == 0 for count in neuron_counts(plan))


def test_heads_of_the_scope_layer_go_in_equal_numbers() -> None:
    plan = inference(0.5, replace(GLOBAL, heads_scope="layer"))
    assert len(set(head_counts(plan))) == 1
    assert head_counts(plan)[0] < HEADS


def test_what_costs_much_for_its_score_goes_first() -> None:
    dear = table(forward=costs(head=0.01, neuron=2.0))
    plan = make_plan(drawn(), ANATOMY, GLOBAL, target=Pricing(Target(inference=0.6), dear))
    assert head_counts(plan) == [HEADS] * LAYERS
    assert sum(neuron_counts(plan)) < LAYERS * NEURONS


def test_what_stays_is_the_best_of_its_layer() -> None:
    scores = drawn()
    for layer, values in zip(inference(0.5, scores=scores).layers, scores.neurons, strict=True):
        best = values.topk(len(layer.neurons)).indices.sort().values.tolist()
        assert list(layer.neurons) == best


def test_a_target_out_of_reach_says_what_can_be_reached() -> None:
    with pytest.raises(PlanError, match=r"target\.inference=0\.2 cannot be met: at least 0\.396"):
        inference(0.2)  # 4 beside the layers, and in each 2 fixed, a head, a neuron and half the modules


def skipped(plan: Plan) -> list[int]:
    """Layers that are skipped."""
    return [layer.index for layer in plan.layers if layer.skipped]


@pytest.mark.parametrize(("share", "count"), [(0.95, 0), (0.8, 1), (0.6, 2), (0.35, 3)])
def test_whole_layers_go_for_a_target_of_depth(share: float, count: int) -> None:
    """With half of the PEFT modules 46 of 48, and 10 or 11 with a layer."""
    scores = drawn()
    pricing = Pricing(Target(inference=share, cuts="depth"), table())
    plan = make_plan(scores, ANATOMY, GLOBAL, target=pricing)
    worth = [float(h.sum() + n.sum()) for h, n in zip(scores.heads, scores.neurons, strict=True)]
    assert skipped(plan) == sorted(sorted(range(LAYERS), key=lambda layer: worth[layer])[:count])
    for layer in plan.layers:
        units = (0, 0) if layer.skipped else (HEADS, NEURONS)
        assert (len(layer.heads), len(layer.neurons)) == units
    assert plan.target is not None
    assert abs(plan.target.predicted - share) <= 11 / 48 / 2
    assert all(module.layer not in skipped(plan) for module in plan.kept_modules)


def test_a_mixed_target_skips_a_layer_that_is_worth_little() -> None:
    scores = drawn()
    scores.heads[1].mul_(1e-3)
    scores.neurons[1].mul_(1e-3)
    mixed, width = (
        make_plan(scores, ANATOMY, GLOBAL, target=Pricing(Target(inference=0.6, cuts=cuts), table()))
        for cuts in ("mixed", "width")
    )
    assert skipped(mixed) == [1]
    assert skipped(width) == []
    for plan in (mixed, width):
        assert plan.target is not None
        assert plan.target.predicted <= 0.6


def test_memory_of_frozen_layers_is_that_of_their_weights() -> None:
    scores = drawn(modules=(0.0, 0.0, 1.0, 1.0))
    held = table(held=costs())
    budget = replace(GLOBAL, frozen_layers=2)
    plan = make_plan(scores, ANATOMY, budget, target=Pricing(Target(memory=0.63), held))
    assert plan.frozen_layers == 2
    assert plan.target is not None
    assert plan.target.predicted == pytest.approx((4 + 2 * 2 + 2 * 11) / 48)
    mild = Pricing(Target(memory=0.82), held)
    assert make_plan(scores, ANATOMY, replace(GLOBAL, frozen_layers="auto"), target=mild).frozen_layers == 1
    without = Pricing(Target(memory=0.63), held, Schedule(10, 1, freezes=False))
    assert make_plan(scores, ANATOMY, budget, target=without).counts.neurons.cut > 0


def run_of(each_pass: int, share: float = 0.5, **options: bool) -> Pricing:
    """A run of 100 steps, 10 before the cut; a step costs three forward passes."""
    forward = costs()
    dear = Curve((0, HEADS), (3 * 7.0, 3 * 11.0)), Curve((0, NEURONS), (3 * 7.0, 3 * 11.0))
    layer = LayerCosts(33.0, 30.0, *dear)
    train = Costs(12 + LAYERS * 33.0, (layer,) * LAYERS)
    schedule = Schedule(total=100, before=10, each_pass=each_pass, **options)
    return Pricing(Target(training=share), table(forward=forward, train=train), schedule)


def test_the_whole_run_is_priced_step_by_step() -> None:
    budget = replace(GLOBAL, frozen_layers=2, modules=0.5)
    plan = make_plan(drawn(), ANATOMY, budget, target=run_of(30, share=0.99))
    whole, live, frozen = 12 + 4 * 33.0, 12 + 2 * 33.0, 2 * 10.0
    expected = (10 * ESTIMATION_COST * whole + 90 * live + 30 * frozen) / (100 * whole)
    assert plan.target is not None
    assert plan.target.predicted == pytest.approx(expected)
    assert plan.counts.heads.cut == 0


@pytest.mark.parametrize(
    ("modules", "frozen"), [((0.0, 0.0, 1.0, 1.0), 1), ((9.0, 9.0, 0.1, 0.1), 0)], ids=["high", "low"]
)
def test_layers_are_frozen_for_a_target_of_training_where_their_modules_are_worth_little(
    modules: tuple[float, ...], frozen: int
) -> None:
    budget = replace(GLOBAL, frozen_layers="auto")
    plan = make_plan(drawn(modules=modules), ANATOMY, budget, target=run_of(10, share=0.7))
    assert plan.frozen_layers == frozen
    assert plan.target is not None
    assert plan.target.predicted <= 0.7


@pytest.mark.parametrize("modules", [(0.1, 0.2, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.1, 0.1)])
def test_a_mild_target_freezes_no_fewer_layers_than_none_does(modules: tuple[float, ...]) -> None:
    budget, scores = replace(GLOBAL, frozen_layers="auto", modules=0.5), drawn(modules=modules)
    usual = make_plan(scores, ANATOMY, budget).frozen_layers
    for share in (0.6, 0.8, 0.99):
        assert make_plan(scores, ANATOMY, budget, target=run_of(10, share=share)).frozen_layers >= usual


def test_half_the_passes_from_a_cache_leave_more_units() -> None:
    budget = replace(GLOBAL, frozen_layers=2)
    kept = [
        make_plan(drawn(), ANATOMY, budget, target=run_of(each_pass, share=0.42)).counts.neurons.kept
        for each_pass in (10, 90)
    ]
    assert kept[0] > kept[1]


@pytest.mark.parametrize(
    ("pricing", "match"),
    [
        (Pricing(Target(inference=0.5)), r"target\.inference needs what the model's layers cost"),
        (Pricing(Target(memory=0.5), table()), r"nothing that was measured for target\.memory"),
        (Pricing(Target(training=0.5), table(train=costs())), "needs the steps of the run"),
    ],
)
def test_what_was_not_measured(pricing: Pricing, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        make_plan(drawn(), ANATOMY, GLOBAL, target=pricing)


@pytest.mark.parametrize(
    ("anatomy", "match"),
    [
        (anatomy_of([HEADS] * 3, [NEURONS] * 3), "of 4 layers, the model has 3"),
        (anatomy_of([8] * 4, [NEURONS] * 4), "layer 0 with 4 units where the model has 8"),
    ],
    ids=["layers", "heads"],
)
def test_a_table_of_another_model(anatomy: Anatomy, match: str) -> None:
    scores = scores_of(
        [torch.ones(layer.heads) for layer in anatomy.layers],
        [torch.ones(layer.neurons) for layer in anatomy.layers],
        {"0.q": torch.ones(2)},
    )
    with pytest.raises(PlanError, match=match):
        make_plan(scores, anatomy, GLOBAL, target=Pricing(Target(inference=0.5), table()))


@pytest.mark.parametrize("cuts", ["width", "mixed"])
@pytest.mark.parametrize(("base", "same"), [("fluctuation", True), ("magnitude", True), ("fisher", False)])
def test_only_scores_of_the_loss_are_compared_between_heads_and_neurons(
    base: str, same: bool, cuts: Cuts
) -> None:
    scores = replace(drawn(), methods=drawn().methods | {"base": base})
    large = replace(scores, heads=tuple(values * 1e3 for values in scores.heads))
    pricing = Pricing(Target(inference=0.6, cuts=cuts), table())
    plans = [make_plan(one, ANATOMY, GLOBAL, target=pricing) for one in (scores, large)]
    assert (head_counts(plans[0]) == head_counts(plans[1])) == same


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("base", ["fluctuation", "magnitude"])
def test_heads_and_neurons_whose_scores_are_not_of_the_loss_go_in_equal_shares(
    base: str, scope: Scope
) -> None:
    """Though most of the neurons' score is that of a few."""
    found = drawn()
    few = tuple(values**8 for values in found.neurons)
    scores = replace(found, methods=found.methods | {"base": base}, neurons=few)
    budget = Budget(heads_scope=scope, neurons_scope=scope)
    plan = make_plan(scores, ANATOMY, budget, target=Pricing(Target(inference=0.7, cuts="width"), table()))
    assert plan.counts.neurons.cut > 0
    for layer in plan.layers:
        heads, neurons = len(layer.heads) / layer.head_count, len(layer.neurons) / layer.neuron_count
        assert heads == pytest.approx(neurons, abs=1 / layer.head_count)
