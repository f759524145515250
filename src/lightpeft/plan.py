"""Plans: which units stay. `make_plan` is a pure function of scores, anatomy and budget."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from lightpeft.anatomy import Anatomy
from lightpeft.config import Budget, Scope, exact_count
from lightpeft.errors import PlanError
from lightpeft.indices import format_indices, parse_indices
from lightpeft.scores import Scores

FORMAT_VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class LayerPlan:
    """What stays of one encoder layer; indices ascend and count in the uncut layer."""

    index: int
    heads: tuple[int, ...]
    head_count: int
    neurons: tuple[int, ...]
    neuron_count: int


@dataclass(frozen=True)
class ModulePlan:
    """Which ranks stay of one PEFT module; none means that the module goes."""

    name: str
    ranks: tuple[int, ...]
    rank_count: int


@dataclass(frozen=True)
class Cutoff:
    """Why the units of one kind went: the scores on both sides of the cut."""

    kind: str
    method: str
    cut: int
    total: int
    highest_cut: float | None
    lowest_kept: float | None

    def describe(self) -> str:
        """One line."""
        text = f"{self.kind}: {self.cut} of {self.total} go, lowest by {self.method}"
        if self.highest_cut is not None and self.lowest_kept is not None:
            text += f" (cut up to {self.highest_cut:.3g}, kept from {self.lowest_kept:.3g})"
        return text


@dataclass(frozen=True)
class Plan:
    """Which units stay, and why. A value: immutable, comparable, JSON both ways."""

    model_type: str
    layers: tuple[LayerPlan, ...]
    modules: tuple[ModulePlan, ...]
    budget: Budget
    estimation_steps: int
    cutoffs: tuple[Cutoff, ...]

    @property
    def kept_modules(self) -> tuple[ModulePlan, ...]:
        """Modules that keep at least one rank."""
        return tuple(module for module in self.modules if module.ranks)

    @property
    def removed_modules(self) -> tuple[ModulePlan, ...]:
        """Modules that go."""
        return tuple(module for module in self.modules if not module.ranks)

    @property
    def cuts_nothing(self) -> bool:
        """Whether every unit stays."""
        return not self.cut_units()

    def cut_units(self) -> frozenset[tuple[str, str, int]]:
        """Every unit that goes, as (kind, place, index)."""
        units: set[tuple[str, str, int]] = set()
        for layer in self.layers:
            heads, neurons = set(layer.heads), set(layer.neurons)
            place = str(layer.index)
            units |= {("head", place, i) for i in range(layer.head_count) if i not in heads}
            units |= {("neuron", place, i) for i in range(layer.neuron_count) if i not in neurons}
        for module in self.modules:
            ranks = set(module.ranks)
            units |= {("rank", module.name, i) for i in range(module.rank_count) if i not in ranks}
        return frozenset(units)

    def describe(self) -> str:
        """What goes and why, for a terminal."""
        lines = [f"Plan for {self.model_type} from {self.estimation_steps} estimation steps"]
        lines += [f"  {cutoff.describe()}" for cutoff in self.cutoffs]
        for layer in self.layers:
            gone = sorted(set(range(layer.head_count)) - set(layer.heads))
            heads = f"heads {len(layer.heads)}/{layer.head_count}"
            heads += f" (without {format_indices(gone)})" if gone else ""
            neurons = f"neurons {len(layer.neurons)}/{layer.neuron_count}"
            lines.append(f"  layer {layer.index}: {heads}, {neurons}")
        lines += [
            f"  {module.name}: "
            + (f"rank {len(module.ranks)}/{module.rank_count}" if module.ranks else "removed")
            for module in self.modules
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """This plan as JSON values; index sets as range texts."""
        return {
            "format_version": FORMAT_VERSION,
            "model_type": self.model_type,
            "estimation_steps": self.estimation_steps,
            "budget": dataclasses.asdict(self.budget),
            "cutoffs": [dataclasses.asdict(cutoff) for cutoff in self.cutoffs],
            "layers": [
                {
                    "index": layer.index,
                    "head_count": layer.head_count,
                    "heads": format_indices(layer.heads),
                    "neuron_count": layer.neuron_count,
                    "neurons": format_indices(layer.neurons),
                }
                for layer in self.layers
            ],
            "modules": [
                {
                    "name": module.name,
                    "rank_count": module.rank_count,
                    "ranks": format_indices(module.ranks),
                }
                for module in self.modules
            ],
        }

    def to_json(self) -> str:
        """This plan as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Plan":
        """Read what `to_dict` wrote.

        Raises:
            PlanError: unknown version, missing or unknown field, or a bad index.
        """
        if value.get("format_version") != FORMAT_VERSION:
            raise PlanError(
                f"the plan has version {value.get('format_version')!r}, this lightpeft reads version "
                f"{FORMAT_VERSION}."
            )
        try:
            _check_keys(value, _PLAN_KEYS, "the plan")
            plan = cls(
                model_type=_typed(value["model_type"], str, "model_type"),
                layers=tuple(_read_layer(layer) for layer in value["layers"]),
                modules=tuple(_read_module(module) for module in value["modules"]),
                budget=Budget(**value["budget"]),
                estimation_steps=_typed(value["estimation_steps"], int, "estimation_steps"),
                cutoffs=tuple(Cutoff(**cutoff) for cutoff in value["cutoffs"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"the plan is malformed: {error!r}.") from error
        plan._check_names()
        return plan

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            PlanError: not JSON, or see `from_dict`.
        """
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise PlanError(f"the plan is not JSON: {error}.") from error
        if not isinstance(value, dict):
            raise PlanError(f"the plan is a JSON {type(value).__name__}, expected an object.")
        return cls.from_dict(value)

    def check_fits(self, anatomy: Anatomy) -> None:
        """Check that this plan was made for a model of this shape.

        Raises:
            PlanError: another architecture, layer count, head count or width.
        """
        if self.model_type != anatomy.model_type:
            raise PlanError(f"the plan is for {self.model_type}, the model is {anatomy.model_type}.")
        if len(self.layers) != len(anatomy.layers):
            raise PlanError(f"the plan has {len(self.layers)} layers, the model has {len(anatomy.layers)}.")
        for mine, found in zip(self.layers, anatomy.layers, strict=True):
            planned = (mine.head_count, mine.neuron_count)
            actual = (found.attention.heads, found.ffn.neurons)
            if planned != actual:
                raise PlanError(
                    f"layer {found.index}: the plan is for {planned[0]} heads and {planned[1]} neurons, "
                    f"the model has {actual[0]} and {actual[1]}. Is it cut already, or another base?"
                )

    def _check_names(self) -> None:
        indices = [layer.index for layer in self.layers]
        if indices != list(range(len(indices))):
            raise PlanError(f"the plan's layers are numbered {indices}; expected 0, 1, 2, ...")
        names = [module.name for module in self.modules]
        for name in names:
            if names.count(name) > 1:
                raise PlanError(f"the plan names the module {name} twice.")
        for layer in self.layers:
            if not layer.heads or not layer.neurons:
                raise PlanError(f"the plan leaves layer {layer.index} without heads or neurons.")


def make_plan(scores: Scores, anatomy: Anatomy, budget: Budget) -> Plan:
    """Choose the units that stay: the most important ones that the budget allows.

    Ties go to the lower index, so the same scores always give the same plan.

    Raises:
        PlanError: scores of another model, or a budget that the floors forbid.
    """
    _check_same_shape(scores, anatomy)
    heads, neurons = _choose_base(scores, anatomy, budget)
    survivors = _choose_modules(scores, anatomy, budget)
    ranks = _choose_ranks(scores, survivors, budget)
    return Plan(
        model_type=anatomy.model_type,
        layers=tuple(
            LayerPlan(
                index=layer.index,
                heads=heads[layer.index],
                head_count=layer.attention.heads,
                neurons=neurons[layer.index],
                neuron_count=layer.ffn.neurons,
            )
            for layer in anatomy.layers
        ),
        modules=tuple(ModulePlan(name, ranks[name], len(values)) for name, values in scores.ranks.items()),
        budget=budget,
        estimation_steps=scores.steps,
        cutoffs=_explain(scores, heads, neurons, survivors, ranks),
    )


Kept = list[tuple[int, ...]]


def _choose_base(scores: Scores, anatomy: Anatomy, budget: Budget) -> tuple[Kept, Kept]:
    choose_heads = _chooser("heads", scores.heads, budget.heads_scope, budget.min_heads, 1)
    choose_neurons = _chooser(
        "neurons", scores.neurons, budget.neurons_scope, budget.min_neurons, budget.align_neurons
    )
    if budget.keep_parameters is None:
        return choose_heads(budget.heads, False), choose_neurons(budget.neurons, False)

    def parameters(share: float) -> int:
        pairs = zip(anatomy.layers, choose_heads(share, True), choose_neurons(share, True), strict=True)
        return sum(layer.parameters(len(h), len(n)) for layer, h, n in pairs)

    share = _smallest_share(parameters, budget.keep_parameters, anatomy.parameters)
    return choose_heads(share, True), choose_neurons(share, True)


def _smallest_share(parameters: Callable[[float], int], target: float, whole: int) -> float:
    """The smallest share, to 1/4096, whose cut leaves at most `target · whole` parameters."""
    steps = 4096
    least = parameters((steps - 1) / steps)
    if least > target * whole:
        raise PlanError(
            f"budget.keep_parameters={target} cannot be met: with the floors min_heads and "
            f"min_neurons at least {least / whole:.3f} of the encoder stays."
        )
    low, high = 0, steps - 1
    while low < high:
        middle = (low + high) // 2
        if parameters(middle / steps) <= target * whole:
            high = middle
        else:
            low = middle + 1
    return low / steps


def _chooser(
    kind: str, scores: Sequence[Tensor], scope: Scope, floor: int, block: int
) -> Callable[[float, bool], Kept]:
    """A function (share to cut, clamp to the floors instead of failing) -> kept indices per layer."""
    blocks = [_Blocks(layer, values.tolist(), block, floor) for layer, values in enumerate(scores)]
    pools = [blocks] if scope == "global" else [[one] for one in blocks]

    def choose(share: float, clamp: bool) -> Kept:
        kept: Kept = [() for _ in blocks]
        for pool in pools:
            for layer, indices in _keep_best(pool, share, clamp, f"budget.{kind}"):
                kept[layer] = indices
        return kept

    return choose


class _Blocks:
    """The units of one layer, most important first, in blocks that stay or go together."""

    def __init__(self, layer: int, scores: list[float], size: int, floor: int) -> None:
        self.layer = layer
        self.units = len(scores)
        self.order = sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))
        self.size = size
        self.count = len(scores) // size
        self.floor = min(math.ceil(floor / size), self.count)
        if self.count == 0:
            raise PlanError(
                f"layer {layer} has {len(scores)} units, fewer than the {size} of budget.align_neurons."
            )
        self.values = [
            math.fsum(scores[unit] for unit in self._block(number)) / len(self._block(number))
            for number in range(self.count)
        ]

    def _block(self, number: int) -> list[int]:
        return self.order[number * self.size : (number + 1) * self.size]

    def best(self, blocks: int) -> tuple[int, ...]:
        """The units of the most important blocks, ascending."""
        return tuple(sorted(self.order[: blocks * self.size]))


def _keep_best(
    pool: list[_Blocks], share: float, clamp: bool, option: str
) -> Iterable[tuple[int, tuple[int, ...]]]:
    units, size = sum(one.units for one in pool), pool[0].size
    if share == 0:
        return [(one.layer, tuple(range(one.units))) for one in pool]
    keep = exact_count((units - exact_count(share, units)) / size, 1)
    floor = sum(one.floor for one in pool)
    if keep < floor and not clamp:
        raise PlanError(
            f"{option}={share:g} leaves {keep * size} of {units} units in "
            f"{'a layer' if len(pool) == 1 else f'{len(pool)} layers'}, but the floors keep at least "
            f"{floor * size}. Cut a smaller share or lower the floor."
        )
    free = [
        (-value, one.layer, number)
        for one in pool
        for number, value in enumerate(one.values)
        if number >= one.floor
    ]
    wanted = sorted(free)[: max(0, keep - floor)]
    taken = {one.layer: one.floor for one in pool}
    for _, layer, _ in wanted:
        taken[layer] += 1
    return [(one.layer, one.best(taken[one.layer])) for one in pool]


def _choose_modules(scores: Scores, anatomy: Anatomy, budget: Budget) -> list[str]:
    """The PEFT modules that survive the coarse cut, in the scores' order."""
    names = list(scores.ranks)
    gone = exact_count(budget.modules, len(names))
    worth = {name: scores.modules[name] * anatomy.height_of(name) ** budget.depth_cost for name in names}
    by_importance = sorted(names, key=lambda name: (-worth[name], names.index(name)))
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
            f"budget.modules={budget.modules:g} and budget.ranks={budget.ranks:g} leave nothing of "
            f"{len(scores.ranks)} PEFT modules to train. Cut a smaller share."
        )
    chosen: dict[str, list[int]] = {name: [] for name in scores.ranks}
    for _, place, rank in kept:
        chosen[survivors[place]].append(rank)
    return {name: tuple(sorted(indices)) for name, indices in chosen.items()}


def _explain(
    scores: Scores,
    heads: Kept,
    neurons: Kept,
    survivors: Sequence[str],
    ranks: dict[str, tuple[int, ...]],
) -> tuple[Cutoff, ...]:
    def cutoff(kind: str, method: str, units: Iterable[tuple[float, bool]]) -> Cutoff:
        pairs = list(units)
        cut = [score for score, stays in pairs if not stays]
        kept = [score for score, stays in pairs if stays]
        return Cutoff(kind, method, len(cut), len(pairs), max(cut, default=None), min(kept, default=None))

    def flat(values: Iterable[Tensor], kept: Iterable[tuple[int, ...]]) -> list[tuple[float, bool]]:
        return [
            (score, index in stays)
            for tensor, stays in zip(values, map(frozenset, kept), strict=True)
            for index, score in enumerate(tensor.tolist())
        ]

    base = scores.methods["base"]
    return (
        cutoff("heads", base, flat(scores.heads, heads)),
        cutoff("neurons", base, flat(scores.neurons, neurons)),
        cutoff(
            "PEFT modules",
            scores.methods["module"],
            [(score, name in survivors) for name, score in scores.modules.items()],
        ),
        cutoff(
            "ranks of surviving modules",
            scores.methods["rank"],
            flat([scores.ranks[n] for n in survivors], [ranks[n] for n in survivors]),
        ),
    )


def _check_same_shape(scores: Scores, anatomy: Anatomy) -> None:
    found = [(len(h), len(n)) for h, n in zip(scores.heads, scores.neurons, strict=True)]
    expected = [(layer.attention.heads, layer.ffn.neurons) for layer in anatomy.layers]
    if found != expected:
        raise PlanError(f"the scores are for layers of (heads, neurons) {found}, the model has {expected}.")
    if set(scores.ranks) != set(scores.modules):
        raise PlanError("the scores name other PEFT modules for ranks than for modules.")


_PLAN_KEYS = {"format_version", "model_type", "estimation_steps", "budget", "cutoffs", "layers", "modules"}
_MOST_UNITS = 2**20


def _read_layer(value: dict[str, Any]) -> LayerPlan:
    _check_keys(value, {"index", "head_count", "heads", "neuron_count", "neurons"}, "a layer of the plan")
    where = f"layer {value['index']}"
    heads, neurons = (_count(value[key], f"{where}, {key}") for key in ("head_count", "neuron_count"))
    return LayerPlan(
        index=_typed(value["index"], int, "a layer's index"),
        head_count=heads,
        heads=parse_indices(value["heads"], heads, f"{where}, heads"),
        neuron_count=neurons,
        neurons=parse_indices(value["neurons"], neurons, f"{where}, neurons"),
    )


def _read_module(value: dict[str, Any]) -> ModulePlan:
    _check_keys(value, {"name", "rank_count", "ranks"}, "a module of the plan")
    name = _typed(value["name"], str, "a module's name")
    count = _count(value["rank_count"], f"{name}, rank_count")
    return ModulePlan(name=name, ranks=parse_indices(value["ranks"], count, name), rank_count=count)


def _check_keys(value: dict[str, Any], expected: set[str], what: str) -> None:
    if set(value) != expected:
        odd = sorted(set(value) ^ expected)
        raise PlanError(f"malformed: {what} has missing or unknown fields: {', '.join(map(str, odd))}.")


def _typed(value: Any, kind: type[T], what: str) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"malformed: {what} is {value!r}, expected {kind.__name__}.")
    return value


def _count(value: Any, what: str) -> int:
    count = _typed(value, int, what)
    if not 0 < count <= _MOST_UNITS:
        raise PlanError(f"{what} is {count}; expected 1 to {_MOST_UNITS}.")
    return count
