"""Plans: which units stay, as values that explain themselves and travel as JSON."""

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, get_args

from lightpeft.anatomy import CROSS, Anatomy
from lightpeft.config import Budget, Cuts, Quantity, Scope
from lightpeft.errors import PlanError
from lightpeft.evidence import Evidence
from lightpeft.indices import format_indices, parse_indices

FORMAT_VERSION = 3
"""1 had no evidence, 2 neither frozen nor skipped layers nor a target; both are still read."""

T = TypeVar("T")


@dataclass(frozen=True)
class LayerPlan:
    """What stays of one layer; indices ascend and count in the uncut layer. A count of 0 means that the layer
    has no such units."""

    index: int
    name: str
    heads: tuple[int, ...]
    head_count: int
    neurons: tuple[int, ...]
    neuron_count: int
    skipped: bool = False
    """Whether the layer hands on what it is given; then no head and no neuron stays."""

    @property
    def is_layer(self) -> bool:
        """Whether this is a layer, not the cross-attention of the one before."""
        return not self.name.endswith(CROSS)

    def describe(self) -> str:
        """One line."""
        if self.skipped:
            return f"{self.name}: skipped"
        parts = []
        if self.head_count:
            gone = sorted(set(range(self.head_count)) - set(self.heads))
            text = f"heads {len(self.heads)}/{self.head_count}"
            parts.append(text + (f" (without {format_indices(gone)})" if gone else ""))
        if self.neuron_count:
            parts.append(f"neurons {len(self.neurons)}/{self.neuron_count}")
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True)
class ModulePlan:
    """Which ranks stay of one PEFT module; none means that the module goes."""

    name: str
    ranks: tuple[int, ...]
    rank_count: int
    layer: int | None = None
    """Index of its layer; None for a module outside all layers."""

    place: str = ""
    """Its name inside the layer."""


@dataclass(frozen=True)
class Cutoff:
    """What one ranking decided: how many went by it, and the scores on both sides of the cut."""

    kind: str
    method: str
    cut: int
    total: int
    """Units that were ranked: of layers, those that can be skipped; of the rest, those in layers that are not
    skipped; of modules, those above the frozen layers; of ranks, those of the modules that the ranking of
    modules left."""

    highest_cut: float | None
    lowest_kept: float | None
    """None where no single score parts the two: each layer was ranked by itself, or a floor or whole blocks
    decided."""

    @property
    def sides(self) -> tuple[float, float] | None:
        """Highest that went and lowest that stayed, where one score parts them."""
        if self.highest_cut is None or self.lowest_kept is None or self.highest_cut > self.lowest_kept:
            return None
        return self.highest_cut, self.lowest_kept


@dataclass(frozen=True)
class TargetPlan:
    """The target that a plan was made for, and what it is predicted to come to."""

    quantity: Quantity
    share: float
    cuts: Cuts
    predicted: float
    """Share of what plain PEFT costs, as `share`."""

    def __post_init__(self) -> None:
        for name, allowed in (("quantity", get_args(Quantity)), ("cuts", get_args(Cuts))):
            if getattr(self, name) not in allowed:
                raise PlanError(f"malformed: the target's {name} is {getattr(self, name)!r}.")
        for name in ("share", "predicted"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise PlanError(f"malformed: the target's {name} is {value!r}.")

    @property
    def what(self) -> str:
        """Of what it is a share, in words."""
        return _QUANTITIES[self.quantity]

    def describe(self) -> str:
        """One line."""
        return (
            f"target: {self.share:.3g} of plain PEFT's {self.what}; predicted {self.predicted:.3g} "
            f"(target.cuts: {self.cuts})"
        )


_QUANTITIES: dict[Quantity, str] = {
    "inference": "time of a forward pass",
    "training": "time of the whole run",
    "memory": "peak memory of a training step",
    "parameters": "parameters of the layers",
}


class Count(NamedTuple):
    """How many units of one kind stay; a PEFT module stays with at least one rank."""

    kept: int
    total: int

    @property
    def cut(self) -> int:
        """Units that go."""
        return self.total - self.kept


class Counts(NamedTuple):
    """The one count of what stays, for everything that shows it."""

    heads: Count
    neurons: Count
    modules: Count
    ranks: Count
    layers: Count

    @classmethod
    def of(cls, layers: Iterable[LayerPlan], modules: Iterable[ModulePlan]) -> "Counts":
        """Count the units of these layers and PEFT modules."""
        layers, modules = list(layers), list(modules)
        return cls(
            heads=_count_pairs((len(one.heads), one.head_count) for one in layers),
            neurons=_count_pairs((len(one.neurons), one.neuron_count) for one in layers),
            modules=_count_pairs((int(bool(one.ranks)), 1) for one in modules),
            ranks=_count_pairs((len(one.ranks), one.rank_count) for one in modules),
            layers=_count_pairs((int(not one.skipped), 1) for one in layers if one.is_layer),
        )


@dataclass(frozen=True)
class Plan:
    """Which units stay, and why. A value: immutable, comparable, JSON both ways."""

    model_type: str
    layers: tuple[LayerPlan, ...]
    modules: tuple[ModulePlan, ...]
    budget: Budget
    estimation_steps: int
    cutoffs: tuple[Cutoff, ...]
    """Of heads, neurons, PEFT modules and ranks, and of layers where any are skipped; none where no ranking
    decided."""

    evidence: Evidence | None = None
    """What the scores rest on; None in plans of earlier versions, and of scores that were not estimated."""

    frozen_layers: int = 0
    """How many of the lowest layers were chosen to train no PEFT module."""

    target: TargetPlan | None = None
    """What was to be met; None where shares were given."""

    @property
    def kept_modules(self) -> tuple[ModulePlan, ...]:
        """Modules that keep at least one rank."""
        return tuple(module for module in self.modules if module.ranks)

    @property
    def removed_modules(self) -> tuple[ModulePlan, ...]:
        """Modules that go."""
        return tuple(module for module in self.modules if not module.ranks)

    @property
    def skipped_layers(self) -> tuple[LayerPlan, ...]:
        """Layers that are skipped, cross-attention left out."""
        return tuple(layer for layer in self.layers if layer.skipped and layer.is_layer)

    @property
    def cuts_nothing(self) -> bool:
        """Whether every unit stays."""
        return not self.cut_units()

    def cut_units(self) -> frozenset[tuple[str, str, int]]:
        """Every unit that goes, as (kind, place, index); those of skipped layers too, and these as
        ("layer", index, 0)."""
        units: set[tuple[str, str, int]] = {("layer", str(one.index), 0) for one in self.skipped_layers}
        for layer in self.layers:
            heads, neurons = set(layer.heads), set(layer.neurons)
            place = str(layer.index)
            units |= {("head", place, i) for i in range(layer.head_count) if i not in heads}
            units |= {("neuron", place, i) for i in range(layer.neuron_count) if i not in neurons}
        for module in self.modules:
            ranks = set(module.ranks)
            units |= {("rank", module.name, i) for i in range(module.rank_count) if i not in ranks}
        return frozenset(units)

    def cut_by_kind(self) -> dict[str, frozenset[tuple[str, str, int]]]:
        """`cut_units` under the names of `counts`; the modules that go as ("module", name, 0)."""
        units = self.cut_units()
        modules = frozenset(("module", module.name, 0) for module in self.removed_modules)
        heads, neurons, ranks, layers = (
            frozenset(unit for unit in units if unit[0] == kind)
            for kind in ("head", "neuron", "rank", "layer")
        )
        return {"heads": heads, "neurons": neurons, "modules": modules, "ranks": ranks, "layers": layers}

    @property
    def counts(self) -> Counts:
        """How many units of each kind stay."""
        return Counts.of(self.layers, self.modules)

    @property
    def reasons(self) -> tuple[str, ...]:
        """How many heads, neurons, PEFT modules and ranks go, and by which ranking, and how many layers are
        skipped or not trained: a sentence each."""
        kinds = ["heads", "neurons", "PEFT modules", "ranks", *(["layers"] if self.skipped_layers else [])]
        if len(self.cutoffs) == len(kinds):
            kinds[0] = self.cutoffs[0].kind
            how = _rankings(self)
        else:
            how = [""] * len(kinds)
        said = [
            f"{kind}: {count.cut:,} of {count.total:,} go{ranking if count.cut else ''}"
            for kind, count, ranking in zip(kinds, self.counts, how, strict=False)
        ]
        return (*said, *_frozen_reason(self), *([] if self.target is None else [self.target.describe()]))

    @property
    def weakness(self) -> str | None:
        """Why another seed would cut other units, in sentences; None where nothing speaks for that."""
        return None if self.evidence is None or self.cuts_nothing else self.evidence.weakness()

    def describe(self) -> str:
        """What goes and why, for a terminal."""
        lines = [f"Plan for {self.model_type} from {self.estimation_steps} estimation steps"]
        if self.evidence is not None:
            lines.append(f"  {self.evidence.describe()}")
        if self.weakness is not None:
            lines.append(f"  {self.weakness}")
        lines += [f"  {reason}" for reason in self.reasons]
        for layer in self.layers:
            lines.append(f"  {layer.describe()}")
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
            "frozen_layers": self.frozen_layers,
            "target": None if self.target is None else dataclasses.asdict(self.target),
            "evidence": None if self.evidence is None else dataclasses.asdict(self.evidence),
            "budget": dataclasses.asdict(self.budget),
            "cutoffs": [dataclasses.asdict(cutoff) for cutoff in self.cutoffs],
            "layers": [
                {
                    "index": layer.index,
                    "name": layer.name,
                    "head_count": layer.head_count,
                    "heads": format_indices(layer.heads),
                    "neuron_count": layer.neuron_count,
                    "neurons": format_indices(layer.neurons),
                    "skipped": layer.skipped,
                }
                for layer in self.layers
            ],
            "modules": [
                {
                    "name": module.name,
                    "rank_count": module.rank_count,
                    "ranks": format_indices(module.ranks),
                    "layer": module.layer,
                    "place": module.place,
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
        if value.get("format_version") not in range(1, FORMAT_VERSION + 1):
            raise PlanError(
                f"the plan has version {value.get('format_version')!r}, this lightpeft reads versions 1 to "
                f"{FORMAT_VERSION}."
            )
        try:
            value = _upgraded(value)
            _check_keys(value, _PLAN_KEYS, "the plan")
            plan = cls(
                model_type=_typed(value["model_type"], str, "model_type"),
                layers=tuple(_read_layer(layer) for layer in value["layers"]),
                modules=tuple(_read_module(module) for module in value["modules"]),
                budget=Budget(**value["budget"]),
                estimation_steps=_typed(value["estimation_steps"], int, "estimation_steps"),
                frozen_layers=_count(value["frozen_layers"], "frozen_layers", 0),
                target=None if value["target"] is None else TargetPlan(**value["target"]),
                cutoffs=tuple(Cutoff(**cutoff) for cutoff in value["cutoffs"]),
                evidence=None if value["evidence"] is None else Evidence.from_dict(value["evidence"]),
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
            actual = (found.heads, found.neurons)
            if planned != actual:
                raise PlanError(
                    f"{found.name}: the plan is for {planned[0]} heads and {planned[1]} neurons, "
                    f"the model has {actual[0]} and {actual[1]}. Is it cut already, or another base?"
                )
            for units, kept in found.with_kept(mine.heads, mine.neurons) if not mine.skipped else ():
                units.check(kept, found.name)
        anatomy.check_skips({layer.index for layer in self.layers if layer.skipped})
        self._check_modules_of_skipped(anatomy)

    def _check_modules_of_skipped(self, anatomy: Anatomy) -> None:
        """PEFT modules that would stay in a layer that does not run."""
        places = tuple(f"{anatomy.layers[one.index].module}." for one in self.skipped_layers)
        for module in self.kept_modules if places else ():
            if module.name.startswith(places):
                raise PlanError(f"the plan keeps the PEFT module {module.name} in a layer that it skips.")

    def _check_names(self) -> None:
        indices = [layer.index for layer in self.layers]
        if indices != list(range(len(indices))):
            raise PlanError(f"the plan's layers are numbered {indices}; expected 0, 1, 2, ...")
        for module in self.modules:
            if module.layer is not None and not 0 <= module.layer < len(self.layers):
                raise PlanError(f"the plan puts {module.name} into layer {module.layer}, which it has not.")
        names = [module.name for module in self.modules]
        for name in names:
            if names.count(name) > 1:
                raise PlanError(f"the plan names the module {name} twice.")


def _count_pairs(pairs: Iterable[tuple[int, int]]) -> Count:
    kept, total = (sum(numbers) for numbers in zip((0, 0), *pairs, strict=True))
    return Count(kept, total)


def _rankings(plan: Plan) -> list[str]:
    """What was compared to choose the units of each kind, and what went along with others."""
    budget, counts = plan.budget, plan.counts
    heads, neurons, modules, ranks, *layers = plan.cutoffs
    where_heads = _where(plan, budget.heads_scope, budget.min_heads)
    where_neurons = _where(plan, budget.neurons_scope, budget.min_neurons)
    unranked, along = counts.modules.total - modules.total, counts.ranks.total - ranks.total
    emptied = counts.modules.cut - modules.cut - unranked
    aligned = f", {budget.align_neurons} by {budget.align_neurons}" if budget.align_neurons > 1 else ""
    blocks = ", those on blocks that go first" if any(map(_loses_a_block, plan.layers)) else ""
    along_layers = _along(unranked, _UNTRAINED[bool(plan.frozen_layers), bool(plan.skipped_layers)])
    first = f"{along_layers}the {modules.cut:,} lowest by {modules.method}{blocks}{_sides(modules)}"
    after = f"{ranks.cut:,} of the other {ranks.total:,}, the lowest by {ranks.method}{_sides(ranks)}"
    return [
        _base_ranking(heads, counts.heads, where_heads, ""),
        _base_ranking(neurons, counts.neurons, where_neurons, aligned),
        f": {first}" + (f", and {emptied:,} with their last rank" if emptied > 0 else ""),
        f": {f'{along:,} with their modules, and ' if along > 0 else ''}{after}",
        *(f", the lowest by {one.method}{_sides(one)}" for one in layers),
    ]


_UNTRAINED = {
    (False, False): "",
    (True, False): "frozen",
    (False, True): "skipped",
    (True, True): "frozen or skipped",
}


def _along(count: int, layers: str) -> str:
    """What goes with its layers, before what goes by its score."""
    return f"the {count:,} in {layers} layers, and " if count else ""


def _frozen_reason(plan: Plan) -> list[str]:
    """How many layers train no PEFT module, and why."""
    auto = plan.budget.frozen_layers == "auto"
    if plan.frozen_layers:
        why = "as many, up to a third, as hold little of the module score"
        said = why if auto else "as budget.frozen_layers asks"
        return [f"frozen layers: the lowest {plan.frozen_layers}, {said}"]
    if auto:
        return [
            "frozen layers: none, because too much of the module score, or more than PEFT, is in the lowest"
        ]
    return []


def _where(plan: Plan, scope: Scope, floor: int) -> str:
    if scope == "global":
        return f"over all layers (each keeps at least {floor})"
    spares_lowest = scope == "upper" and plan.target is None and not plan.budget.uniform
    return "in each layer (the lowest third last)" if spares_lowest else "in each layer"


def _base_ranking(cutoff: Cutoff, count: Count, where: str, aligned: str) -> str:
    skipped = count.total - cutoff.total
    with_layers = f": {_along(skipped, 'skipped')}" if skipped else ", "
    if skipped and not cutoff.cut:
        return ": all of them in skipped layers"
    return f"{with_layers}{where} the lowest by {cutoff.method}{aligned}{_sides(cutoff)}"


def _sides(cutoff: Cutoff) -> str:
    return "" if cutoff.sides is None else " (cut up to {:.3g}, kept from {:.3g})".format(*cutoff.sides)


def _loses_a_block(layer: LayerPlan) -> bool:
    return not layer.skipped and bool(
        (layer.head_count and not layer.heads) or (layer.neuron_count and not layer.neurons)
    )


_PLAN_KEYS = {"format_version", *(field.name for field in dataclasses.fields(Plan))}
_MOST_UNITS = 2**20


def _upgraded(value: dict[str, Any]) -> dict[str, Any]:
    """A plan of an earlier version as the present one would have it."""
    if value["format_version"] == 1:
        value = {**value, "format_version": 2, "evidence": None}
    if value["format_version"] == 2:
        budget = dict(value["budget"])
        budget.pop("keep_parameters", None)
        if budget.pop("depth_cost", 0.0):
            # Its cutoff of modules is in scores times a height, which nothing shows any more.
            value = {**value, "cutoffs": [_without_sides(cutoff) for cutoff in value["cutoffs"]]}
        layers = [{**layer, "skipped": False} for layer in value["layers"]]
        value = {
            **value,
            "format_version": FORMAT_VERSION,
            "budget": budget,
            "frozen_layers": 0,
            "target": None,
            "layers": layers,
        }
    return value


def _without_sides(cutoff: dict[str, Any]) -> dict[str, Any]:
    """A cutoff of an earlier version; that of modules without its scores."""
    of_modules = cutoff["kind"] == "PEFT modules"
    return {**cutoff, "highest_cut": None, "lowest_kept": None} if of_modules else cutoff


def _read_layer(value: dict[str, Any]) -> LayerPlan:
    keys = {"index", "name", "head_count", "heads", "neuron_count", "neurons", "skipped"}
    _check_keys(value, keys, "a layer of the plan")
    where = f"layer {value['index']}"
    heads, neurons = (_count(value[key], f"{where}, {key}", 0) for key in ("head_count", "neuron_count"))
    skipped = value["skipped"]
    if not isinstance(skipped, bool):
        raise PlanError(f"malformed: {where}, skipped is {skipped!r}, expected true or false.")
    if skipped and (value["heads"] or value["neurons"]):
        raise PlanError(f"malformed: {where} is skipped, but keeps heads or neurons.")
    return LayerPlan(
        index=_typed(value["index"], int, "a layer's index"),
        name=_typed(value["name"], str, "a layer's name"),
        head_count=heads,
        heads=_indices(value["heads"], heads, f"{where}, heads"),
        neuron_count=neurons,
        neurons=_indices(value["neurons"], neurons, f"{where}, neurons"),
        skipped=skipped,
    )


def _read_module(value: dict[str, Any]) -> ModulePlan:
    keys = {"name", "rank_count", "ranks", "layer", "place"}
    _check_keys(value, keys, "a module of the plan")
    name = _typed(value["name"], str, "a module's name")
    count = _count(value["rank_count"], f"{name}, rank_count")
    return ModulePlan(
        name=name,
        ranks=_indices(value["ranks"], count, name),
        rank_count=count,
        layer=None if value["layer"] is None else _typed(value["layer"], int, f"{name}, layer"),
        place=_typed(value["place"], str, f"{name}, place"),
    )


def _indices(value: Any, count: int, what: str) -> tuple[int, ...]:
    return parse_indices(_typed(value, str, what), count, what)


def _check_keys(value: dict[str, Any], expected: set[str], what: str) -> None:
    if set(value) != expected:
        odd = sorted(set(value) ^ expected)
        raise PlanError(f"malformed: {what} has missing or unknown fields: {', '.join(map(str, odd))}.")


def _typed(value: Any, kind: type[T], what: str) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"malformed: {what} is {value!r}, expected {kind.__name__}.")
    return value


def _count(value: Any, what: str, least: int = 1) -> int:
    count = _typed(value, int, what)
    if not least <= count <= _MOST_UNITS:
        raise PlanError(f"{what} is {count}; expected {least} to {_MOST_UNITS}.")
    return count
