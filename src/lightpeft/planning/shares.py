"""`make_plan`: scores, anatomy and budget -> plan. A pure function."""

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor

from lightpeft.anatomy import Anatomy, together
from lightpeft.config import Budget, Scope, Target, exact_count
from lightpeft.errors import PlanError
from lightpeft.evidence import Agreement, Evidence
from lightpeft.plan import Cutoff, LayerPlan, ModulePlan, Plan, TargetPlan
from lightpeft.planning.blocks import Blocks, blocks_of
from lightpeft.planning.prices import Pricing
from lightpeft.planning.skips import choose_skipped, layer_losses
from lightpeft.planning.target import Found, choose_for_target, cuts_for
from lightpeft.planning.uniform import evened, require_something
from lightpeft.score_tables import TABLES
from lightpeft.scores import Scores

Kept = list[tuple[int, ...]]


FROZEN_LOSS = 0.25
"""What `frozen_layers="auto"` may lose of the module score that stays with every layer trained, over what the
frozen layers would have of it if all had alike."""


def make_plan(
    scores: Scores,
    anatomy: Anatomy,
    budget: Budget,
    *,
    target: Target | Pricing | None = None,
    pays: bool = True,
) -> Plan:
    """Choose the units that stay: the most important ones that the budget allows.

    Where the scores have halves, the plan also says how far these would cut the same.

    Ties go to the lower index, so the same scores always give the same plan. Shares are of the units that
    can be cut. Query heads that share keys and values go in whole KV groups, or, with
    `budget.kv_groups="equal"`, in equal numbers from every group.

    Args:
        target: what to meet instead of `budget.heads` and `budget.neurons`; of time and memory a `Pricing`
            with a latency table.
        pays: whether low layers without PEFT modules save time; if not, `frozen_layers="auto"` freezes none.

    Raises:
        PlanError: scores of another model, or a budget or target that the floors or the architecture forbid.
    """
    pricing = (Pricing(target) if target.is_set else None) if isinstance(target, Target) else target
    if budget.uniform:
        anatomy = evened(anatomy)
        require_something(anatomy, may_skip=budget.layers > 0 or pricing is not None)
    plan = _choose(scores, anatomy, budget, pays, pricing)
    if scores.scored_steps is None:
        return plan
    halves = [_choose(half, anatomy, budget, pays, pricing) for half in scores.halves]
    agreed = agreements(scores.methods, *halves) if halves else ()
    return dataclasses.replace(plan, evidence=Evidence(scores.scored_steps, agreed))


def _choose(scores: Scores, anatomy: Anatomy, budget: Budget, pays: bool, pricing: Pricing | None) -> Plan:
    _check_same_shape(scores, anatomy)
    if pricing is None:
        skipped = choose_skipped(scores, anatomy, budget)
        heads, neurons = _choose_base(scores, anatomy, budget, skipped)
        met = None
    else:
        frozen_layers, found = _choose_for_target(scores, anatomy, budget, pays, pricing)
        skipped = frozenset(anatomy.layers[index].module for index in found.skipped)
        heads, neurons = found.heads, found.neurons
        met = TargetPlan(
            *(pricing.target.quantity, pricing.target.share),
            *(cuts_for(anatomy, pricing.target.cuts), found.cost),
        )
    in_skipped = _modules_in(scores, anatomy, skipped)
    idle = in_skipped | _idle_linears(anatomy, heads, neurons)
    if pricing is None:
        frozen_layers = _choose_frozen(scores, anatomy, budget, idle, pays)
    frozen = _modules_below(scores, anatomy, frozen_layers)
    survivors = _choose_modules(scores, budget, idle, frozen)
    ranks = _choose_ranks(scores, survivors, budget)
    return Plan(
        model_type=anatomy.model_type,
        layers=tuple(
            LayerPlan(
                index=layer.index,
                name=layer.name,
                heads=() if layer.module in skipped else heads[layer.index],
                head_count=layer.heads,
                neurons=() if layer.module in skipped else neurons[layer.index],
                neuron_count=layer.neurons,
                skipped=layer.module in skipped,
            )
            for layer in anatomy.layers
        ),
        modules=tuple(
            ModulePlan(name, ranks[name], len(values), *_place(anatomy, name))
            for name, values in scores.ranks.items()
        ),
        budget=budget,
        estimation_steps=scores.steps,
        frozen_layers=frozen_layers,
        target=met,
        cutoffs=_explain(
            scores,
            *(anatomy, skipped, heads, neurons, survivors, ranks),
            untrained=frozen | in_skipped,
            heads_label=how_heads_go(anatomy, budget),
        ),
    )


def agreements(methods: Mapping[str, str], even: Plan, odd: Plan) -> tuple[Agreement, ...]:
    """How far two plans of one model and budget cut the same, for the kinds whose score depends on the steps.

    Args:
        methods: as `Scores.methods`.
    """
    rows = {kind: table.get(methods.get(kind, "sum")) for kind, table in TABLES.items()}
    measured = {kind for kind, row in rows.items() if row is None or row.statistics}
    if "base" in measured:  # the sum over a layer depends on the steps as what it sums does
        measured.add("layer")
    found = []
    cut, others_cut = even.cut_by_kind(), odd.cut_by_kind()
    for kind, count in even.counts._asdict().items():
        mine, others = cut[kind], others_cut[kind]
        name, method = _NAMES[kind]
        if method in measured and mine | others:
            size = (len(mine) + len(others)) / 2
            chance = len(mine) * len(others) / count.total / size
            found.append(Agreement(name, len(mine & others) / size, chance))
    return tuple(found)


_NAMES = {
    "heads": ("heads", "base"),
    "neurons": ("neurons", "base"),
    "modules": ("PEFT modules", "module"),
    "ranks": ("ranks", "rank"),
    "layers": ("layers", "layer"),
}
"""The kinds of `Plan.counts`: in words, and by which kind of score they go."""


def how_heads_go(anatomy: Anatomy, budget: Budget) -> str:
    """`heads`, or in which numbers they go where they share keys and values."""
    shared = [layer.attention for layer in anatomy.layers if layer.attention and layer.attention.groups > 1]
    groups = sorted({units.group for units in shared if units.group > 1})
    if not groups:
        return "heads"
    if budget.kv_groups == "equal" and all(units.splits_groups for units in shared):
        return "heads in equal numbers from every KV group"
    return f"heads in whole KV groups of {', '.join(map(str, groups))}"


def limits(anatomy: Anatomy, budget: Budget) -> list[str]:
    """What this architecture keeps from being cut as asked, in words, to say before a run."""
    anatomy = evened(anatomy) if budget.uniform else anatomy
    grouped = how_heads_go(anatomy, budget)
    said = [] if grouped == "heads" else [grouped.replace("heads in", "heads are cut in")]
    reasons = [
        f"{one.name}: {u.kind} stay, because {u.fixed}"
        for one in anatomy.layers
        for u in one.units
        if u.fixed
    ]
    if budget.layers:
        reasons += [f"{one.name}: not skipped, because {one.stays}" for one in anatomy.layers if one.stays]
    said += together(reasons)
    divided = {u.divides for one in anatomy.layers for u in one.units if u.divides and not u.fixed}
    if budget.uniform and divided:
        said.append(f"heads stay in the nearest number that divides the width of {max(divided)}")
    layers = len(anatomy.skippable)
    if budget.layers and layers and not exact_count(budget.layers, layers):
        said.append(
            f"no layer is skipped: {budget.layers:g} of {layers} (budget.layers) is less than half of one"
        )
    return [*said, *anatomy.notes]


def _place(anatomy: Anatomy, name: str) -> tuple[int | None, str]:
    """The layer of a PEFT module, and its name in there."""
    inside = (layer for layer in anatomy.layers if name.startswith(f"{layer.module}."))
    layer = anatomy.layer_of(name) or next(inside, None)
    return (None, name) if layer is None else (layer.index, name.removeprefix(f"{layer.module}."))


def _modules_in(scores: Scores, anatomy: Anatomy, layers: Collection[str]) -> set[str]:
    """The PEFT modules in these layers."""
    places = {name: _place(anatomy, name)[0] for name in scores.ranks} if layers else {}
    return {n for n, index in places.items() if index is not None and anatomy.layers[index].module in layers}


def _choose_base(
    scores: Scores, anatomy: Anatomy, budget: Budget, skipped: Collection[str]
) -> tuple[Kept, Kept]:
    heads = [
        blocks_of(layer.name, None if layer.module in skipped else layer.attention, values.tolist(), budget)
        for layer, values in zip(anatomy.layers, scores.heads, strict=True)
    ]
    neurons = [
        blocks_of(layer.name, None if layer.module in skipped else layer.ffn, values.tolist(), budget)
        for layer, values in zip(anatomy.layers, scores.neurons, strict=True)
    ]
    lowest = set() if budget.uniform else _lowest_thirds(anatomy)
    return (
        _keep("heads", heads, budget.heads, budget.heads_scope, lowest),
        _keep("neurons", neurons, budget.neurons, budget.neurons_scope, lowest),
    )


def _lowest_thirds(anatomy: Anatomy) -> set[int]:
    """The indices of the layers in the lowest third of each stack."""
    lowest = {module for stack in anatomy.stacks for module in stack[: len(stack) // 3]}
    return {layer.index for layer in anatomy.layers if layer.module in lowest}


MOST_OF_UPPER = 0.5
"""What the scope `upper` takes of a layer before it takes anything of the lowest third."""


def _keep(
    kind: str, layers: Sequence[Blocks | None], share: float, scope: Scope, lowest: Collection[int]
) -> Kept:
    """The kept indices per layer."""
    kept: Kept = [() if one is None else tuple(range(one.units)) for one in layers]
    cuttable = [(index, one) for index, one in enumerate(layers) if one is not None and one.blocks]
    for pool, own_share in _pools(cuttable, share, scope, lowest):
        if own_share and pool:
            for index, indices in _keep_best(pool, own_share, f"budget.{kind}={share:g}"):
                kept[index] = indices
    return kept


Pool = list[tuple[int, Blocks]]


def _pools(layers: Pool, share: float, scope: Scope, lowest: Collection[int]) -> list[tuple[Pool, float]]:
    """Which layers are ranked together, and the share of their units that goes."""
    if scope == "global":
        return [(layers, share)]
    low = sum(one.units for index, one in layers if index in lowest)
    high = sum(one.units for index, one in layers) - low
    if scope == "layer" or not low or not high:
        return [([layer], share) for layer in layers]
    gone = share * (low + high)
    of_upper, of_lowest = gone / high, 0.0
    if of_upper > max(share, MOST_OF_UPPER) + 1e-9:
        of_upper = max(share, MOST_OF_UPPER)
        of_lowest = (gone - of_upper * high) / low
    return [([layer], of_lowest if layer[0] in lowest else of_upper) for layer in layers]


def _keep_best(pool: Pool, share: float, option: str) -> Iterable[tuple[int, tuple[int, ...]]]:
    units = sum(one.units for _, one in pool)
    wanted = units - exact_count(share, units)
    floor = sum(one.floor * one.block_size for _, one in pool)
    if floor - pool[0][1].block_size / 2 > wanted:
        raise PlanError(
            f"{option} leaves {wanted} of {units} units in "
            f"{pool[0][1].where if len(pool) == 1 else f'{len(pool)} layers'}, but the floors keep at least "
            f"{floor}. Cut a smaller share or lower the floor."
        )
    free = sorted(
        (-value, index, number, one.block_size)
        for index, one in pool
        for number, value in enumerate(one.values)
        if number >= one.floor
    )
    taken, kept = {index: one.floor for index, one in pool}, floor
    for _, index, _, size in free:
        if kept + size / 2 > wanted:
            break
        taken[index] += 1
        kept += size
    # What restricts the numbers, a uniform budget, ranks each layer by itself.
    return [(index, one.best(one.allowed(taken[index], wanted / one.block_size))) for index, one in pool]


def _idle_linears(anatomy: Anatomy, heads: Kept, neurons: Kept) -> set[str]:
    """Linears of attention or FFN blocks that go altogether: nothing trained on them would be seen."""
    idle: set[str] = set()
    for layer in anatomy.layers:
        for units, kept in layer.with_kept(heads[layer.index], neurons[layer.index]):
            if not kept:
                idle.update(units.linears)
    return idle


def _choose_frozen(scores: Scores, anatomy: Anatomy, budget: Budget, idle: set[str], pays: bool) -> int:
    """How many of the lowest layers train no PEFT module."""
    choices = _frozen_choices(anatomy, budget, pays)
    kept = {count: _kept_score(scores, anatomy, budget, idle, count) for count in choices}
    alike = kept[choices[0]] / len(anatomy.layers)
    fit = (count for count in choices if kept[choices[0]] - kept[count] <= FROZEN_LOSS * alike * count)
    return max(fit, default=choices[0])


def _frozen_choices(anatomy: Anatomy, budget: Budget, pays: bool) -> range:
    """The numbers of lowest layers that may be chosen to train no PEFT module."""
    layers = len(anatomy.lowest_stack)
    if budget.frozen_layers == "auto":
        return range(layers // 3 + 1 if pays else 1)
    if budget.frozen_layers > layers:
        raise PlanError(f"budget.frozen_layers is {budget.frozen_layers}, but there are {layers} layers.")
    return range(budget.frozen_layers, budget.frozen_layers + 1)


def _kept_score(
    scores: Scores, anatomy: Anatomy, budget: Budget, idle: set[str], frozen_layers: int
) -> float:
    """Score of the PEFT modules that stay above so many frozen layers."""
    frozen = _modules_below(scores, anatomy, frozen_layers)
    return math.fsum(scores.modules[name] for name in _choose_modules(scores, budget, idle, frozen))


def _choose_for_target(
    scores: Scores, anatomy: Anatomy, budget: Budget, pays: bool, pricing: Pricing
) -> tuple[int, Found]:
    """How many layers are frozen, and what stays, so that the shares of score lost by both are least.

    No fewer than without a target, by the module scores alone; more, where frozen layers are cheaper by it.
    """
    target, usual = pricing.target, _choose_frozen(scores, anatomy, budget, set(), pays)
    most_frozen = _frozen_choices(anatomy, budget, pays)[-1]
    choices = range(usual, 1 + (most_frozen if target.quantity in ("training", "memory") else usual))
    found, least, most = [], [], _kept_score(scores, anatomy, budget, set(), 0)
    for k in choices:
        prices = pricing.prices(anatomy, *_what_trains(scores, anatomy, budget, k))
        met = choose_for_target(scores, anatomy, budget, prices, target.share, target.cuts)
        if isinstance(met, Found):
            lost = 1 - _kept_score(scores, anatomy, budget, set(), k) / most if most > 0 else 0.0
            found.append((met.lost + lost, k, met))
        else:
            least.append(met)
    if not found:
        raise PlanError(
            f"target.{target.quantity}={target.share:g} cannot be met: at least {min(least):.3f} of plain "
            "PEFT's stays with the floors min_heads and min_neurons, and with what may go by target.cuts."
        )
    _, frozen_layers, best = min(found, key=lambda one: one[:2])
    return frozen_layers, best


def _what_trains(
    scores: Scores, anatomy: Anatomy, budget: Budget, frozen_layers: int
) -> tuple[frozenset[int], list[float]]:
    """The layers in the frozen prefix, and per layer the share of its PEFT modules that stay."""
    lowest = anatomy.lowest_stack[:frozen_layers]
    frozen = frozenset(layer.index for layer in anatomy.layers if layer.module in lowest)
    survivors = _choose_modules(scores, budget, set(), _modules_below(scores, anatomy, frozen_layers))
    places = {name: _place(anatomy, name)[0] for name in scores.ranks}
    modules = {name: anatomy.layers[at].module for name, at in places.items() if at is not None}
    total = Counter(modules.values())
    stay = Counter(modules[name] for name in survivors if name in modules)
    return frozen, [stay[one.module] / max(1, total[one.module]) for one in anatomy.layers]


def _modules_below(scores: Scores, anatomy: Anatomy, frozen_layers: int) -> set[str]:
    """The PEFT modules in so many of the lowest layers."""
    return _modules_in(scores, anatomy, anatomy.lowest_stack[:frozen_layers])


def _choose_modules(scores: Scores, budget: Budget, idle: set[str], frozen: set[str]) -> list[str]:
    """The PEFT modules that survive the coarse cut, in the scores' order.

    Those in frozen layers and on idle linears go first, even if they are more than the share.
    """
    names, first = list(scores.ranks), idle | frozen
    gone = max(exact_count(budget.modules, len(names)), sum(name in first for name in names))
    by_importance = sorted(names, key=lambda name: (name in first, -scores.modules[name], names.index(name)))
    survivors = set(by_importance[: len(names) - gone])
    return [name for name in names if name in survivors]


def _choose_ranks(scores: Scores, survivors: Sequence[str], budget: Budget) -> dict[str, tuple[int, ...]]:
    """The ranks that stay, over all surviving modules together; a module may lose every rank."""
    ranks = [
        (-value, place, rank)
        for place, name in enumerate(survivors)
        for rank, value in enumerate(scores.ranks[name].tolist())
    ]
    kept = sorted(ranks)[: len(ranks) - exact_count(budget.ranks, len(ranks))]
    if scores.ranks and not kept:
        raise PlanError(
            f"budget.modules={budget.modules:g}, budget.ranks={budget.ranks:g}, "
            f"budget.layers={budget.layers:g} and budget.frozen_layers={budget.frozen_layers} leave "
            f"nothing of {len(scores.ranks)} PEFT modules to train. Cut a smaller share."
        )
    chosen: dict[str, list[int]] = {name: [] for name in scores.ranks}
    for _, place, rank in kept:
        chosen[survivors[place]].append(rank)
    return {name: tuple(sorted(indices)) for name, indices in chosen.items()}


def _explain(
    scores: Scores,
    anatomy: Anatomy,
    skipped: Collection[str],
    heads: Kept,
    neurons: Kept,
    survivors: Sequence[str],
    ranks: dict[str, tuple[int, ...]],
    untrained: set[str],
    heads_label: str,
) -> tuple[Cutoff, ...]:
    def cutoff(kind: str, method: str, units: Iterable[tuple[float, bool]]) -> Cutoff:
        pairs = list(units)
        cut = [score for score, stays in pairs if not stays]
        kept = [score for score, stays in pairs if stays]
        highest, lowest = max(cut, default=None), min(kept, default=None)
        parted = highest is None or lowest is None or highest <= lowest
        return Cutoff(kind, method, len(cut), len(pairs), *((highest, lowest) if parted else (None, None)))

    def flat(values: Iterable[Tensor], kept: Iterable[tuple[int, ...]]) -> list[tuple[float, bool]]:
        return [
            (score, index in stays)
            for tensor, stays in zip(values, map(frozenset, kept), strict=True)
            for index, score in enumerate(tensor.tolist())
        ]

    base, losses = scores.methods["base"], layer_losses(scores, anatomy)
    running = [layer.index for layer in anatomy.layers if layer.module not in skipped]

    of_layers = [(losses[module], module not in skipped) for module in anatomy.skippable]

    def of_running(values: Sequence[Tensor], kept: Kept) -> list[tuple[float, bool]]:
        return flat([values[index] for index in running], [kept[index] for index in running])

    return (
        cutoff(heads_label, base, of_running(scores.heads, heads)),
        cutoff("neurons", base, of_running(scores.neurons, neurons)),
        cutoff(
            "PEFT modules",
            scores.methods["module"],
            [(score, name in survivors) for name, score in scores.modules.items() if name not in untrained],
        ),
        cutoff(
            "ranks of surviving modules",
            scores.methods["rank"],
            flat([scores.ranks[n] for n in survivors], [ranks[n] for n in survivors]),
        ),
        *([cutoff("layers", scores.methods.get("layer", "sum"), of_layers)] if skipped else []),
    )


def _check_same_shape(scores: Scores, anatomy: Anatomy) -> None:
    found = [(len(h), len(n)) for h, n in zip(scores.heads, scores.neurons, strict=True)]
    expected = [(layer.heads, layer.neurons) for layer in anatomy.layers]
    if found != expected:
        raise PlanError(f"the scores are for layers of (heads, neurons) {found}, the model has {expected}.")
    if scores.layers and len(scores.layers) != len(anatomy.layers):
        raise PlanError(
            f"the scores are for {len(scores.layers)} layers, the model has {len(anatomy.layers)}."
        )
    if set(scores.ranks) != set(scores.modules):
        raise PlanError("the scores name other PEFT modules for ranks than for modules.")
