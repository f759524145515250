"""What a plan costs by the measure of a target, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightpeft.anatomy import Anatomy
from lightpeft.config import Quantity, Target
from lightpeft.costs import Costs, CostTable, Curve, LayerCosts, Schedule
from lightpeft.errors import PlanError

ESTIMATION_COST = 1.07
"""What a step of estimation takes, in steps of plain PEFT."""


@dataclass(frozen=True)
class Price:
    """What a layer costs in a plan: a layer of a table, so often, with this share of its PEFT modules."""

    costs: LayerCosts
    times: float
    modules: float

    @property
    def whole(self) -> float:
        """With all heads and neurons."""
        return self.times * (self.costs.bare + self.modules * (self.costs.whole - self.costs.bare))

    def saved(self, kind: str, count: int) -> float:
        """What goes when `count` heads or neurons stay."""
        bare, modules = (_saved(getattr(self.costs, name), count) for name in (kind, f"{kind}_peft"))
        return self.times * (bare + self.modules * modules)


def _saved(curve: Curve | None, count: int) -> float:
    return 0.0 if curve is None else curve.saved(count)


@dataclass(frozen=True)
class Prices:
    """A target's cost of a whole plan."""

    plain: float
    """Of the uncut model with all its PEFT modules."""

    constant: float
    """Of what no plan changes."""

    layers: tuple[Price, ...]


@dataclass(frozen=True)
class Pricing:
    """A target, and what is known of the costs of model and run."""

    target: Target
    table: CostTable | None = None
    schedule: Schedule | None = None

    def prices(self, anatomy: Anatomy, frozen: frozenset[int], modules: Sequence[float]) -> Prices:
        """Price every layer.

        Args:
            frozen: indices of the layers that train no PEFT module, nor do those below.
            modules: per layer the share of its PEFT modules that stay.

        Raises:
            PlanError: the quantity was not measured, or not for this model.
        """
        costs = self._costs(anatomy)
        if self.target.quantity == "training":
            return self._of_run(costs, frozen, modules)
        layers = [Price(one, 1.0, share) for one, share in zip(costs.layers, modules, strict=True)]
        if self.target.quantity == "memory" and (self.schedule is None or self.schedule.freezes):
            weights = self._weights(anatomy)
            layers = [
                Price(weights[index], 1.0, 1.0) if index in frozen else price
                for index, price in enumerate(layers)
            ]
        return Prices(costs.whole, costs.rest, tuple(layers))

    def _of_run(self, costs: Costs, frozen: frozenset[int], modules: Sequence[float]) -> Prices:
        """Seconds of all steps, estimation and measuring included, in batches as large as the table's."""
        table, schedule = self.table, self.schedule
        assert table is not None
        assert table.forward is not None
        if schedule is None:
            raise PlanError("target.training needs the steps of the run; it is planned in a run only.")
        batches = schedule.batches
        before = schedule.before * batches * ESTIMATION_COST * costs.whole
        layers = [
            Price(table.forward.layers[index], schedule.through_prefix * batches, 0.0)
            if index in frozen
            else Price(one, schedule.after * batches, modules[index])
            for index, one in enumerate(costs.layers)
        ]
        constant = before + table.seconds / schedule.size + schedule.after * batches * costs.rest
        return Prices(schedule.total * batches * costs.whole, constant, tuple(layers))

    def _costs(self, anatomy: Anatomy) -> Costs:
        quantity = self.target.quantity
        if quantity == "parameters":
            return parameter_costs(anatomy)
        if self.table is None:
            raise PlanError(
                f"target.{quantity} needs what the model's layers cost on this device: the latency.json of a "
                "run with such a target (--latency). Only target.parameters can be planned without."
            )
        costs = _COLUMNS[quantity](self.table)
        if costs is None:
            raise PlanError(f"the latency table has nothing that was measured for target.{quantity}.")
        _require_fits(costs, anatomy)
        return costs

    def _weights(self, anatomy: Anatomy) -> list[LayerCosts]:
        """What layers hold without graph."""
        assert self.table is not None
        found = []
        for layer, size in zip(anatomy.layers, self.table.weights, strict=True):
            scale = size / max(1, layer.parameters())
            curves = {
                name: curve and Curve(curve.counts, tuple(cost * scale for cost in curve.costs))
                for name, curve in _parameter_curves(anatomy, layer.index).items()
            }
            found.append(LayerCosts(size, size, curves.get("heads"), curves.get("neurons")))
        return found


_COLUMNS: dict[Quantity, Callable[[CostTable], Costs | None]] = {
    "inference": lambda table: table.forward,
    "training": lambda table: table.train,
    "memory": lambda table: table.held,
}


def parameter_costs(anatomy: Anatomy) -> Costs:
    """Parameters of the layers as costs."""
    layers = []
    for layer in anatomy.layers:
        curves = _parameter_curves(anatomy, layer.index)
        whole = float(layer.parameters())
        layers.append(LayerCosts(whole, whole, curves.get("heads"), curves.get("neurons")))
    return Costs(float(anatomy.parameters), tuple(layers))


def _parameter_curves(anatomy: Anatomy, index: int) -> dict[str, Curve]:
    """Parameters of a layer by the number of its heads and neurons, whole KV groups at a time."""
    layer = anatomy.layers[index]
    curves: dict[str, Curve] = {}
    for units in layer.units:
        whole, own = layer.parameters(), units.parameters(range(units.count))
        counts = tuple(range(0, units.count + 1, units.group))
        costs = tuple(float(whole - own + units.parameters(range(count))) for count in counts)
        curves[units.kind] = Curve(counts, costs)
    return curves


def _require_fits(costs: Costs, anatomy: Anatomy) -> None:
    for layer, found in zip(anatomy.layers, costs.layers, strict=False):
        for units, curve in ((layer.attention, found.heads), (layer.ffn, found.neurons)):
            if curve is not None and (units is None or curve.counts[-1] != units.count):
                raise PlanError(
                    f"the latency table has {layer.name} with {curve.counts[-1]} units where the model has "
                    f"{0 if units is None else units.count}; it is of another model."
                )
    if len(costs.layers) != len(anatomy.layers):
        raise PlanError(
            f"the latency table is of {len(costs.layers)} layers, the model has {len(anatomy.layers)}."
        )
