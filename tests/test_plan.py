"""`make_plan` chooses exactly what the budget says, whatever the scores look like."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lightpeft import Anatomy, Budget, EstimationError, Plan, PlanError, Scores, Target, make_plan
from lightpeft.anatomy.units import CROSS
from lightpeft.config import Scope, exact_count
from lightpeft.plan import Count
from lightpeft.planning import limits
from tests.support.anatomies import attention_units, ffn_units
from tests.support.anatomies import layer as plain_layer

PER_LAYER: dict[str, Any] = {"heads_scope": "layer", "neurons_scope": "layer"}
NOTHING: dict[str, Any] = PER_LAYER | {"heads": 0.0, "neurons": 0.0, "modules": 0.0, "ranks": 0.0}


def anatomy_of(heads: Sequence[int], neurons: Sequence[int], head_size: int = 8, group: int = 1) -> Anatomy:
    """Layers of such sizes and a hidden width of 32, without a model."""
    layers = []
    for i, (h, n) in enumerate(zip(heads, neurons, strict=True)):
        attention = attention_units(f"{i}.q", f"{i}.k", f"{i}.v", f"{i}.o", h, head_size, group=group)
        layers.append(plain_layer(i, attention, ffn_units(f"{i}.up", f"{i}.down", n)))
    return Anatomy("bert", tuple(layers))


def scores_of(
    heads: Sequence[Tensor],
    neurons: Sequence[Tensor],
    ranks: dict[str, Tensor] | None = None,
    modules: dict[str, float] | None = None,
) -> Scores:
    ranks = ranks or {}
    return Scores(
        heads=tuple(heads),
        neurons=tuple(neurons),
        ranks=ranks,
        modules=modules if modules is not None else dict.fromkeys(ranks, 1.0),
        steps=7,
        methods={"base": "fisher", "module": "activation", "rank": "taylor"},
    )


def drawn(anatomy: Anatomy, seed: int, modules: int = 6, rank: int = 4) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    ranks = {f"m{i}": torch.rand(rank, generator=generator) for i in range(modules)}
    return scores_of(
        [torch.rand(layer.heads, generator=generator) for layer in anatomy.layers],
        [torch.rand(layer.neurons, generator=generator) for layer in anatomy.layers],
        ranks,
        {name: float(torch.rand((), generator=generator)) for name in ranks},
    )


def head_counts(plan: Plan) -> list[int]:
    return [len(layer.heads) for layer in plan.layers]


def neuron_counts(plan: Plan) -> list[int]:
    return [len(layer.neurons) for layer in plan.layers]


def parameters(plan: Plan, anatomy: Anatomy) -> int:
    return sum(
        layer.parameters(kept.heads, kept.neurons)
        for layer, kept in zip(anatomy.layers, plan.layers, strict=True)
    )


@pytest.mark.parametrize(
    ("share", "total", "count"),
    [
        (0.0, 9, 0),
        (1 / 3, 3, 1),
        (1 / 3, 12, 4),
        (2 / 3, 12, 8),
        (1 / 3, 1536, 512),
        (1 / 7, 49, 7),
        (0.1, 10, 1),
        (0.5, 5, 3),
        (0.7, 10, 7),
        (0.29, 100, 29),
        (0.57, 100, 57),
    ],
)
def test_counts_are_exact(share: float, total: int, count: int) -> None:
    assert exact_count(share, total) == count


@pytest.mark.parametrize("total", [3, 4, 7, 12, 16, 30])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5, 2 / 3, 0.9])
def test_the_asked_number_of_heads_goes_from_every_layer(share: float, total: int) -> None:
    anatomy = anatomy_of([total] * 2, [8, 8])
    cut = math.floor(share * total + 0.5 + 1e-9)
    budget = Budget(**(NOTHING | {"heads": share}))
    if cut >= total:
        with pytest.raises(PlanError, match=r"budget\.heads"):
            make_plan(drawn(anatomy, 0), anatomy, budget)
        return
    assert head_counts(make_plan(drawn(anatomy, 0), anatomy, budget)) == [total - cut] * 2


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30])
def test_equal_scores_still_cut_exactly_the_asked_number(scope: Scope, value: float) -> None:
    anatomy = anatomy_of([12] * 3, [60] * 3)
    ranks = {f"m{i}": torch.full((8,), value) for i in range(6)}
    scores = scores_of([torch.full((12,), value)] * 3, [torch.full((60,), value)] * 3, ranks)
    budget = Budget(heads_scope=scope, neurons_scope=scope)
    plan = make_plan(scores, anatomy, budget)
    assert (sum(head_counts(plan)), sum(neuron_counts(plan))) == (24, 120)
    assert len(plan.kept_modules) <= 3
    assert sum(len(module.ranks) for module in plan.modules) == 18


def test_partly_tied_scores_cut_exactly_the_asked_number() -> None:
    anatomy = anatomy_of([6], [6])
    tied = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    plan = make_plan(scores_of([tied], [tied]), anatomy, Budget(heads=0.5, neurons=0.5))
    assert plan.layers[0].heads == (0, 1, 5)
    assert plan.layers[0].neurons == (0, 1, 5)


def test_the_least_important_go_in_each_layer() -> None:
    anatomy = anatomy_of([4, 4], [4, 4])
    one, two = torch.tensor([0.1, 0.4, 0.2, 0.3]), torch.tensor([9.0, 7.0, 6.0, 8.0])
    budget = Budget(heads=0.5, neurons=0.25, heads_scope="layer", neurons_scope="layer")
    plan = make_plan(scores_of([one, two], [one, two]), anatomy, budget)
    assert [layer.heads for layer in plan.layers] == [(1, 3), (0, 3)]
    assert [layer.neurons for layer in plan.layers] == [(1, 2, 3), (0, 1, 3)]


@pytest.mark.parametrize(
    ("layers", "share", "kept"),
    [
        (6, 1 / 3, [12, 12, 6, 6, 6, 6]),
        (6, 0.25, [12, 12, 7, 7, 7, 7]),
        (6, 0.4, [10, 10, 6, 6, 6, 6]),
        (6, 0.5, [6] * 6),
        (6, 0.75, [3] * 6),
        (5, 1 / 3, [12, 7, 7, 7, 7]),
        (2, 1 / 3, [8, 8]),
        (1, 0.5, [6]),
        (6, 0.0, [12] * 6),
    ],
)
def test_the_scope_upper_keeps_the_lowest_third_as_long_as_it_can(
    layers: int, share: float, kept: list[int]
) -> None:
    anatomy = anatomy_of([12] * layers, [1200] * layers)
    budget = Budget(heads=share, neurons=share, heads_scope="upper", neurons_scope="upper")
    scores = drawn(anatomy, 2)
    plan = make_plan(scores, anatomy, budget)
    assert head_counts(plan) == kept
    assert sum(neuron_counts(plan)) == pytest.approx((1 - share) * 1200 * layers, abs=layers / 2)
    for layer, values in zip(plan.layers, scores.heads, strict=True):
        assert list(layer.heads) == values.topk(len(layer.heads)).indices.sort().values.tolist()


def test_the_scope_upper_spares_the_lowest_third_of_each_stack_and_of_its_cross_attention() -> None:
    names = [f"encoder layer {i}" for i in range(3)]
    names += [f"decoder layer {i}{part}" for i in range(3) for part in ("", CROSS)]
    layers = tuple(
        replace(one, index=index, name=name, module=name.removesuffix(CROSS))
        for index, (one, name) in enumerate(zip(anatomy_of([12] * 9, [4] * 9).layers, names, strict=True))
    )
    anatomy = Anatomy("t5", layers)
    plan = make_plan(drawn(anatomy, 1), anatomy, Budget(**NOTHING | {"heads": 1 / 3, "heads_scope": "upper"}))
    assert head_counts(plan) == [12, 6, 6, 12, 12, 6, 6, 6, 6]


def test_the_scope_upper_counts_skipped_layers_among_the_lowest() -> None:
    anatomy = anatomy_of([12] * 6, [12] * 6)
    values = [torch.full((12,), 0.0 if i == 0 else 1.0) for i in range(6)]
    budget = Budget(**NOTHING | {"heads": 0.25, "layers": 1 / 6, "heads_scope": "upper"})
    plan = make_plan(scores_of(values, values), anatomy, budget)
    assert [layer.index for layer in plan.skipped_layers] == [0]
    assert head_counts(plan) == [0, 12, 8, 8, 8, 8]


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("floor", [1, 2])
def test_global_ranking_keeps_a_floor_in_every_layer(kind: str, floor: int) -> None:
    anatomy = anatomy_of([4] * 3, [4] * 3)
    values = [torch.rand(4) * 1e-6, torch.rand(4) + 1, torch.rand(4) + 2]
    budget = Budget(**{kind: 0.5, f"{kind}_scope": "global", f"min_{kind}": floor})
    plan = make_plan(scores_of(values, values), anatomy, budget)
    kept = head_counts(plan) if kind == "heads" else neuron_counts(plan)
    assert kept == [floor, 6 - 4 if floor == 2 else 1, 4 if floor == 1 else 2]
    best = int(values[0].argmax())
    assert best in (plan.layers[0].heads if kind == "heads" else plan.layers[0].neurons)


@pytest.mark.parametrize("seed", range(5))
def test_global_ranking_keeps_the_best_above_the_floor(seed: int) -> None:
    anatomy = anatomy_of([6] * 4, [30] * 4)
    scores = drawn(anatomy, seed)
    budget = Budget(heads_scope="global", neurons_scope="global")
    plan = make_plan(scores, anatomy, budget)
    for kept, values in (
        ([layer.heads for layer in plan.layers], scores.heads),
        ([layer.neurons for layer in plan.layers], scores.neurons),
    ):
        cut = [v[i] for v, k in zip(values, kept, strict=True) for i in range(len(v)) if i not in k]
        stay = [v[list(k)] for v, k in zip(values, kept, strict=True)]
        total = sum(len(v) for v in values)
        assert len(cut) == exact_count(1 / 3, total)
        free = torch.cat([one for one in stay if len(one) > 1])
        assert min(float(x) for x in free) >= max(map(float, cut))


def test_floors_that_forbid_the_share_are_refused() -> None:
    anatomy = anatomy_of([4] * 2, [8] * 2)
    with pytest.raises(PlanError, match=r"budget\.heads=0\.5 leaves 2 of 4 .* at least 3"):
        make_plan(drawn(anatomy, 0), anatomy, Budget(heads=0.5, min_heads=3, **PER_LAYER))
    with pytest.raises(PlanError, match=r"budget\.neurons=0\.75 leaves"):
        make_plan(drawn(anatomy, 0), anatomy, Budget(neurons=0.75, min_neurons=6, **PER_LAYER))


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("width", [64, 96, 100, 130, 200])
@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 0.5])
def test_aligned_widths_are_multiples(scope: Scope, width: int, share: float) -> None:
    anatomy = anatomy_of([4] * 3, [width] * 3)
    scores = drawn(anatomy, 3)
    budget = Budget(neurons=share, neurons_scope=scope, align_neurons=32)
    counts = neuron_counts(make_plan(scores, anatomy, budget))
    if share == 0:
        assert counts == [width] * 3
    else:
        cut = [count for count in counts if count < width]
        assert len(cut) >= (2 if scope == "upper" else 3 if width % 32 else 0)
        assert [count % 32 for count in cut] == [0] * len(cut)
        assert abs(sum(counts) - 3 * width * (1 - share)) <= 3 * 16


def test_aligned_widths_are_multiples_when_one_layer_is_kept_whole() -> None:
    """100 = 3 · 32 + 4: the four left over are no block of their own."""
    anatomy = anatomy_of([4] * 2, [100] * 2)
    scores = scores_of([torch.rand(4)] * 2, [torch.rand(100), torch.rand(100) + 10])
    budget = Budget(neurons=0.2, neurons_scope="global", align_neurons=32)
    counts = neuron_counts(make_plan(scores, anatomy, budget))
    assert [count % 32 for count in counts] == [0, 0]


def test_aligned_layers_keep_their_best_neurons() -> None:
    anatomy = anatomy_of([4], [128])
    scores = drawn(anatomy, 1)
    plan = make_plan(scores, anatomy, Budget(neurons=0.5, align_neurons=32))
    expected = scores.neurons[0].topk(64).indices.sort().values.tolist()
    assert list(plan.layers[0].neurons) == expected


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("target", [0.35, 0.5, 0.6, 0.65, 0.8, 0.95])
def test_a_target_of_parameters_is_met_from_below_and_tight(scope: Scope, target: float) -> None:
    anatomy = anatomy_of([12] * 6, [512] * 6)
    budget = Budget(heads_scope=scope, neurons_scope=scope)
    plan = make_plan(drawn(anatomy, 5), anatomy, budget, target=Target(parameters=target))
    kept = parameters(plan, anatomy) / anatomy.parameters
    step = 6 * (8 * (3 * 33 + 32)) / anatomy.parameters
    assert target - step <= kept <= target


GROUPS: dict[str, Any] = NOTHING | {"heads": 0.5}


def test_kv_groups_go_whole_lowest_mean_first() -> None:
    anatomy = anatomy_of([8], [8], group=2)
    heads = torch.tensor([9.0, 0.0, 3.0, 3.0, 0.0, 0.0, 5.0, 5.0])
    plan = make_plan(scores_of([heads], [torch.ones(8)]), anatomy, Budget(**GROUPS))
    assert plan.layers[0].heads == (0, 1, 6, 7)
    assert "heads in whole KV groups of 2: 4 of 8 go" in plan.describe()
    assert limits(anatomy, Budget()) == ["heads are cut in whole KV groups of 2"]


def test_or_the_best_query_heads_of_every_group_stay() -> None:
    anatomy = anatomy_of([8], [8], group=4)
    heads = torch.tensor([9.0, 0.0, 3.0, 1.0, 0.0, 0.1, 5.0, 5.0])
    plan = make_plan(scores_of([heads], [torch.ones(8)]), anatomy, Budget(**GROUPS, kv_groups="equal"))
    assert plan.layers[0].heads == (0, 2, 6, 7)
    assert "heads in equal numbers from every KV group: 4 of 8 go" in plan.describe()


def test_query_heads_behind_one_kv_head_go_one_by_one() -> None:
    anatomy = anatomy_of([4], [8], group=4)
    plan = make_plan(
        scores_of([torch.tensor([1.0, 4.0, 2.0, 3.0])], [torch.ones(8)]), anatomy, Budget(**GROUPS)
    )
    assert plan.layers[0].heads == (1, 3)


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_without_a_floor_a_whole_block_may_go_and_its_modules_go_first(kind: str) -> None:
    anatomy = anatomy_of([4, 4], [8, 8])
    values = {"heads": [torch.zeros(4), torch.ones(4)], "neurons": [torch.zeros(8), torch.ones(8)]}
    linears = ("q", "k", "v", "o", "up", "down")
    ranks = {f"{layer}.{name}": torch.ones(2) for layer in (0, 1) for name in linears}
    worth = {name: 10.0 - 9 * (name[0] == "1") for name in ranks}
    budget = Budget(**NOTHING | {kind: 0.5, f"{kind}_scope": "global"}, min_heads=0, min_neurons=0)
    plan = make_plan(scores_of(values["heads"], values["neurons"], ranks, worth), anatomy, budget)
    assert getattr(plan.layers[0], kind) == ()
    gone = {"heads": {"0.q", "0.k", "0.v", "0.o"}, "neurons": {"0.up", "0.down"}}[kind]
    assert {module.name for module in plan.removed_modules} == gone


def test_units_that_cannot_be_cut_stay_and_do_not_count() -> None:
    whole = anatomy_of([4, 4], [8, 8])
    fixed = replace(whole.layers[0], attention=replace(whole.layers[0].attention, fixed="it is shared"))
    anatomy = replace(whole, layers=(fixed, whole.layers[1]))
    scores = scores_of([torch.zeros(4), torch.arange(4.0)], [torch.ones(8)] * 2)
    plan = make_plan(scores, anatomy, Budget(**GROUPS | {"heads_scope": "global"}))
    assert [layer.heads for layer in plan.layers] == [(0, 1, 2, 3), (2, 3)]
    assert limits(anatomy, Budget()) == ["layer 0: heads stay, because it is shared"]
    torn = replace(plan, layers=(replace(plan.layers[0], heads=(1,)), plan.layers[1]))
    with pytest.raises(PlanError, match="layer 0: heads cannot be cut, because it is shared"):
        torn.check_fits(anatomy)


def test_a_target_of_one_keeps_all() -> None:
    anatomy = anatomy_of([4] * 2, [64] * 2)
    plan = make_plan(drawn(anatomy, 0), anatomy, Budget(), target=Target(parameters=1.0))
    assert parameters(plan, anatomy) == anatomy.parameters


def test_a_target_with_alignment() -> None:
    anatomy = anatomy_of([12] * 4, [1000] * 4)
    budget, target = Budget(align_neurons=64), Target(parameters=0.6)
    plan = make_plan(drawn(anatomy, 5), anatomy, budget, target=target)
    assert {count % 64 for count in neuron_counts(plan)} == {0}
    assert 0.5 < parameters(plan, anatomy) / anatomy.parameters <= 0.6


def test_an_impossible_target_is_refused_with_what_is_possible() -> None:
    anatomy = anatomy_of([4] * 2, [64] * 2)
    with pytest.raises(PlanError, match=r"target\.parameters=0\.1 cannot be met.*at least 0\.\d+"):
        make_plan(drawn(anatomy, 0), anatomy, Budget(min_heads=3), target=Target(parameters=0.1))


@pytest.mark.parametrize(("share", "gone"), [(0.0, 0), (0.25, 3), (0.5, 6), (0.75, 9), (0.9, 11)])
def test_the_asked_number_of_modules_goes(share: float, gone: int) -> None:
    anatomy = anatomy_of([4], [8])
    scores = drawn(anatomy, 2, modules=12)
    plan = make_plan(scores, anatomy, Budget(modules=share, ranks=0))
    assert len(plan.removed_modules) == gone
    lowest = sorted(scores.modules, key=lambda name: scores.modules[name])[:gone]
    assert {module.name for module in plan.removed_modules} == set(lowest)


def modules_in_layers(*values: float) -> Scores:
    """Two modules in each layer, both worth the layer's value."""
    names = [f"{layer}.{linear}" for layer in range(len(values)) for linear in ("q", "up")]
    layers = len(values)
    return scores_of(
        [torch.ones(4)] * layers,
        [torch.ones(8)] * layers,
        {name: torch.ones(2) for name in names},
        {name: values[int(name[0])] for name in names},
    )


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_modules_of_frozen_layers_go_first_within_the_share_or_beyond_it(share: float) -> None:
    anatomy = anatomy_of([4] * 4, [8] * 4)
    scores = modules_in_layers(9.0, 2.0, 1.0, 3.0)
    plan = make_plan(scores, anatomy, Budget(modules=share, ranks=0, frozen_layers=1))
    gone = {"0.q", "0.up"} | ({"2.q", "2.up"} if share else set())
    assert {module.name for module in plan.removed_modules} == gone
    assert plan.frozen_layers == 1
    assert plan.reasons[4] == "frozen layers: the lowest 1, as budget.frozen_layers asks"


@pytest.mark.parametrize(
    ("values", "share", "frozen"),
    [
        ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 0.5, 2),
        ((0.05, 0.1, 1.0, 1.0, 1.0, 1.0), 0.0, 2),
        ((0.2, 1.0, 1.0, 1.0, 1.0, 1.0), 0.0, 1),
        ((0.25, 1.0, 1.0, 1.0, 1.0, 1.0), 0.0, 0),
        ((0.0, 0.36, 1.0, 1.0, 1.0, 1.0), 0.0, 2),
        ((0.0, 0.37, 1.0, 1.0, 1.0, 1.0), 0.0, 1),
        ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 0.0, 0),
        ((9.0, 0.1, 0.1, 1.0, 1.0, 1.0), 0.5, 0),
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.0, 2),
    ],
)
def test_auto_freezes_the_most_layers_that_leave_enough_score(
    values: tuple[float, ...], share: float, frozen: int
) -> None:
    anatomy = anatomy_of([4] * 6, [8] * 6)
    budget = Budget(modules=share, ranks=0, frozen_layers="auto")
    plan = make_plan(modules_in_layers(*values), anatomy, budget)
    assert plan.frozen_layers == frozen
    assert all(module.layer is not None and module.layer >= frozen for module in plan.kept_modules)
    said = f"the lowest {frozen}, as many" if frozen else "none, because"
    assert plan.reasons[4].startswith(f"frozen layers: {said}")
    assert make_plan(modules_in_layers(*values), anatomy, budget, pays=False).frozen_layers == 0


def test_more_frozen_layers_than_there_are_are_refused() -> None:
    anatomy = anatomy_of([4] * 2, [8] * 2)
    with pytest.raises(PlanError, match=r"budget\.frozen_layers is 3, but there are 2 layers"):
        make_plan(modules_in_layers(1.0, 1.0), anatomy, Budget(frozen_layers=3))
    with pytest.raises(PlanError, match=r"budget\.frozen_layers=2 leave nothing of 4"):
        make_plan(modules_in_layers(1.0, 1.0), anatomy, Budget(frozen_layers=2))


def test_ranks_are_chosen_over_all_surviving_modules_and_one_may_lose_all() -> None:
    anatomy = anatomy_of([4], [8])
    ranks = {"a": torch.tensor([5.0, 6.0]), "b": torch.tensor([1.0, 2.0]), "c": torch.tensor([9.0, 9.0])}
    scores = scores_of([torch.rand(4)], [torch.rand(8)], ranks, {"a": 1.0, "b": 2.0, "c": 0.0})
    plan = make_plan(scores, anatomy, Budget(modules=1 / 3, ranks=0.5))
    assert {module.name: module.ranks for module in plan.modules} == {"a": (0, 1), "b": (), "c": ()}


def test_losing_every_rank_is_refused() -> None:
    anatomy = anatomy_of([4], [8])
    scores = drawn(anatomy, 0, modules=1, rank=1)
    with pytest.raises(PlanError, match="leave nothing of 1 PEFT modules"):
        make_plan(scores, anatomy, Budget(modules=0.5, ranks=0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["heads", "neurons", "ranks", "modules", "gates", "means"])
def test_scores_that_are_not_finite_are_refused(kind: str, bad: float) -> None:
    parts: dict[str, object] = {
        "heads": (torch.ones(2),),
        "neurons": (torch.ones(2),),
        "ranks": {"a": torch.ones(2)},
        "modules": {"a": 1.0},
        "gates": {"0.o": torch.ones(2)},
        "means": {"0.o": torch.ones(2)},
    }
    poisoned = torch.tensor([1.0, bad])
    parts[kind] = {
        "heads": (poisoned,),
        "neurons": (poisoned,),
        "ranks": {"a": poisoned},
        "modules": {"a": bad},
        "gates": {"0.o": poisoned},
        "means": {"0.o": poisoned},
    }[kind]
    with pytest.raises(EstimationError, match="not finite"):
        Scores(steps=1, methods={}, **parts)  # type: ignore[arg-type]


def test_scores_of_another_model_are_refused() -> None:
    small, large = anatomy_of([4], [8]), anatomy_of([4, 4], [8, 8])
    with pytest.raises(PlanError, match="the scores are for layers"):
        make_plan(drawn(small, 0), large, Budget())


@pytest.mark.parametrize("seed", range(4))
def test_the_same_scores_give_the_same_plan(seed: int) -> None:
    anatomy = anatomy_of([6] * 3, [40] * 3)
    budget = Budget(heads_scope="global", neurons_scope="global")
    one = make_plan(drawn(anatomy, seed), anatomy, budget)
    two = make_plan(drawn(anatomy, seed), anatomy, budget)
    assert one == two
    assert hash(one) == hash(two)
    assert one != make_plan(drawn(anatomy, seed + 10), anatomy, budget)


@pytest.mark.parametrize("seed", range(4))
def test_kept_indices_ascend_and_are_in_range(seed: int) -> None:
    anatomy = anatomy_of([6, 4, 2], [40, 33, 8])
    plan = make_plan(drawn(anatomy, seed), anatomy, Budget(neurons_scope="global"))
    for layer in plan.layers:
        for kept, count in ((layer.heads, layer.head_count), (layer.neurons, layer.neuron_count)):
            assert list(kept) == sorted(set(kept))
            assert set(kept) <= set(range(count))


@pytest.mark.parametrize("seed", range(3))
def test_cut_units_are_exactly_what_does_not_stay(seed: int) -> None:
    anatomy = anatomy_of([6] * 2, [10] * 2)
    plan = make_plan(drawn(anatomy, seed), anatomy, Budget())
    expected = {
        (kind, str(layer.index), unit)
        for layer in plan.layers
        for kind, kept, count in (
            ("head", layer.heads, layer.head_count),
            ("neuron", layer.neurons, layer.neuron_count),
        )
        for unit in range(count)
        if unit not in kept
    } | {
        ("rank", module.name, unit)
        for module in plan.modules
        for unit in range(module.rank_count)
        if unit not in module.ranks
    }
    assert plan.cut_units() == expected
    assert not plan.cuts_nothing


def test_describe_says_what_goes_and_why() -> None:
    anatomy = anatomy_of([4] * 2, [8] * 2)
    heads = torch.tensor([0.1, 0.4, 0.2, 0.3])
    ranks = {"m": torch.tensor([1.0, 2.0]), "n": torch.ones(2)}
    plan = make_plan(
        scores_of(
            [heads] * 2,
            [torch.arange(8.0)] * 2,
            ranks,
            {"m": 1.0, "n": 0.5},
        ),
        anatomy,
        Budget(heads=0.5, neurons=0.25, **PER_LAYER),
    )
    text = plan.describe()
    assert "bert from 7 estimation steps" in text
    assert "heads: 4 of 8 go, in each layer the lowest by fisher (cut up to 0.2, kept from 0.3)" in text
    assert "layer 0: heads 2/4 (without 0,2), neurons 6/8" in text
    assert "m: rank 1/2" in text
    assert "n: removed" in text


def test_a_module_that_loses_its_last_rank_counts_as_gone_everywhere() -> None:
    anatomy = anatomy_of([4], [8])
    ranks = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([5.0, 6.0]), "c": torch.tensor([0.3, 7.0])}
    modules = {"a": 3.0, "b": 2.0, "c": 1.0}
    budget = Budget(heads=0, neurons=0, modules=1 / 3, ranks=0.5)
    plan = make_plan(scores_of([torch.rand(4)], [torch.rand(8)], ranks, modules), anatomy, budget)
    assert [module.name for module in plan.kept_modules] == ["b"]
    assert (plan.counts.modules, plan.counts.ranks) == (Count(1, 3), Count(2, 6))
    assert plan.reasons == (
        "heads: 0 of 4 go",
        "neurons: 0 of 8 go",
        "PEFT modules: 2 of 3 go: the 1 lowest by activation (cut up to 1, kept from 2), "
        "and 1 with their last rank",
        "ranks: 4 of 6 go: 2 with their modules, and 2 of the other 4, the lowest by taylor "
        "(cut up to 0.2, kept from 5)",
    )


@pytest.mark.parametrize(
    ("budget", "kind", "words"),
    [
        (Budget(heads_scope="layer"), 0, "in each layer the lowest by"),
        (Budget(heads_scope="upper"), 0, "in each layer (the lowest third last) the lowest by"),
        (Budget(heads_scope="global"), 0, "over all layers (each keeps at least 1) the lowest by"),
        (Budget(neurons_scope="global", align_neurons=4), 1, ", 4 by 4"),
        (Budget(frozen_layers=1), 2, "the 6 in frozen layers, and the 3 lowest by activation"),
        (
            Budget(heads=0.9, min_heads=0, heads_scope="global", modules=0.9),
            2,
            "those on blocks that go first",
        ),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_reason_names_what_was_compared_and_no_order_that_did_not_hold(
    budget: Budget, kind: int, words: str, seed: int
) -> None:
    anatomy = anatomy_of([4] * 3, [12] * 3)
    linears = [name for layer in anatomy.layers for units in layer.units for name in units.linears]
    ranks = {name: torch.rand(4) for name in linears}
    modules = {name: float(torch.rand(())) for name in linears}
    drawn_scores = replace(drawn(anatomy, seed), ranks=ranks, modules=modules)
    plan = make_plan(drawn_scores, anatomy, budget)
    assert words in plan.reasons[kind]
    for cutoff in plan.cutoffs:
        found = (cutoff.highest_cut, cutoff.lowest_kept)
        assert None in found or found == cutoff.sides


def test_an_order_that_did_not_hold_is_not_shown() -> None:
    plan = make_plan(drawn(anatomy_of([4] * 2, [8] * 2), 0), anatomy_of([4] * 2, [8] * 2), Budget())
    overlapping = replace(plan.cutoffs[0], highest_cut=2.0, lowest_kept=1.0)
    older = replace(plan, cutoffs=(overlapping, *plan.cutoffs[1:]))
    assert overlapping.sides is None
    assert "(cut up to" not in older.reasons[0]


def test_a_plan_without_its_rankings_still_counts() -> None:
    plan = make_plan(drawn(anatomy_of([4] * 2, [8] * 2), 0), anatomy_of([4] * 2, [8] * 2), Budget(heads=0.5))
    assert replace(plan, cutoffs=()).reasons[0] == "heads: 4 of 8 go"
