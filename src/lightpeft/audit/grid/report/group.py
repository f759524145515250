"""Cells that differ in nothing but their seed: pooled, and held against their floor and the undefended."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from lightpeft.audit.choices import CLEAN, NO_DEFENCE
from lightpeft.audit.grid.cell import Cell, CellKey, Point
from lightpeft.audit.metrics import Difference, Proportion, Spread, difference, over_floor, over_seeds

Verdict = Literal["above the floor", "not distinguishable from the floor", "below the floor"]


@dataclass(frozen=True)
class OverSeeds:
    """One proportion of several seeds."""

    pooled: Proportion
    """All texts of all seeds together. Its interval knows the texts, not the seeds."""

    spread: Spread
    """Of the seeds' own values."""


@dataclass(frozen=True)
class Group:
    """The cells that differ in nothing but their seed."""

    cells: tuple[Cell, ...]
    """One or more, by seed."""

    floors: tuple[Proportion | None, ...]
    """For each cell the LFR of a never-poisoned module under its attack's trigger; None: missing."""

    undefended: tuple[Cell | None, ...]
    """For each cell the one without a defence."""

    @property
    def key(self) -> CellKey:
        """The first cell's; its seed says nothing about the others."""
        return self.cells[0].key

    @property
    def seeds(self) -> tuple[int, ...]:
        """In rising order."""
        return tuple(cell.key.seed for cell in self.cells)

    @property
    def is_clean(self) -> bool:
        """Whether nobody attacked."""
        return self.key.attack == CLEAN

    @property
    def is_defended(self) -> bool:
        """Whether there was a defence."""
        return self.key.defence != NO_DEFENCE

    @property
    def seeds_without_floor(self) -> tuple[int, ...]:
        """Seeds whose LFR cannot be held against anything; none for `clean`, which is the floor."""
        return () if self.is_clean else _seeds_without(self.cells, self.floors)

    @property
    def seeds_without_undefended(self) -> tuple[int, ...]:
        """Seeds whose CACC has no cell without a defence beside it."""
        return _seeds_without(self.cells, self.undefended)

    @cached_property
    def lfr(self) -> OverSeeds:
        """At the end, behind the defence."""
        return _all(cell.after.lfr for cell in self.cells)

    @cached_property
    def cacc(self) -> OverSeeds:
        """At the end, behind the defence."""
        return _all(cell.after.cacc for cell in self.cells)

    @cached_property
    def attacked(self) -> OverSeeds | None:
        """LFR on the attacker's own test set, before the user has the module; None if a seed lacks it."""
        return pool([cell.attacked.lfr if cell.attacked else None for cell in self.cells])

    @cached_property
    def received(self) -> OverSeeds | None:
        """LFR on the user's test set before any training; None if a seed lacks it."""
        points = [_received(cell) for cell in self.cells]
        return pool([point.lfr if point else None for point in points])

    @cached_property
    def triggers_left(self) -> OverSeeds | None:
        """Triggered texts that still have a trigger after truncation; None if a seed was not counted."""
        return pool([cell.triggers_left for cell in self.cells])

    @cached_property
    def rejected_clean(self) -> OverSeeds | None:
        """Clean texts that the guard refused; None if a seed had no guard."""
        return pool([cell.rejected_clean for cell in self.cells])

    @cached_property
    def rejected_triggered(self) -> OverSeeds | None:
        """Triggered texts that the guard refused; None if a seed had no guard."""
        return pool([cell.rejected_triggered for cell in self.cells])

    @cached_property
    def floor(self) -> OverSeeds | None:
        """The clean LFR, over the seeds that have one."""
        found = [floor for _, floor in self._with_floor]
        return _all(found) if found else None

    @cached_property
    def lfr_beside_floor(self) -> OverSeeds | None:
        """LFR over the seeds that have a floor."""
        found = [cell.after.lfr for cell, _ in self._with_floor]
        return _all(found) if found else None

    @cached_property
    def over_floor(self) -> Difference | None:
        """LFR minus floor, both pooled over the seeds that have a floor; None for `clean` and without any."""
        if self.floor is None or self.lfr_beside_floor is None or self.is_clean:
            return None
        return over_floor(self.lfr_beside_floor.pooled, self.floor.pooled)

    @cached_property
    def floors_of_attacks(self) -> dict[str, OverSeeds]:
        """Of `clean`: its LFR under the trigger of each attack that all seeds have."""
        pooled = {
            attack: pool([cell.floor_for(attack) for cell in self.cells]) for attack in self.cells[0].floors
        }
        return {attack: found for attack, found in pooled.items() if found is not None}

    @property
    def verdict(self) -> Verdict | None:
        """What `over_floor` allows one to say."""
        return None if self.over_floor is None else verdict_of(self.over_floor)

    @property
    def runs_above(self) -> tuple[int, int]:
        """How many runs had an LFR above their own floor, by the interval, and how many have a floor."""
        found = [over_floor(cell.after.lfr, floor).is_above for cell, floor in self._with_floor]
        return sum(found), len(found)

    @cached_property
    def cost(self) -> Difference | None:
        """CACC without minus CACC with the defence, over the seeds that have both; None for `none`."""
        pairs = [(other, cell) for cell, other in zip(self.cells, self.undefended, strict=True) if other]
        if not self.is_defended or not pairs:
            return None
        before, after = (_all(cell.after.cacc for cell in side).pooled for side in zip(*pairs, strict=True))
        return difference(before, after)

    @property
    def price(self) -> float:
        """`cost`, to compare; one that is not known is the highest."""
        return math.inf if self.cost is None else self.cost.value

    @property
    def is_alike(self) -> bool:
        """Whether the cells differ in nothing but the seed."""
        return all(made_of(cell) == made_of(self.cells[0]) for cell in self.cells)

    @property
    def seconds(self) -> float:
        """Mean over the seeds, of the user's part."""
        return sum(cell.seconds for cell in self.cells) / len(self.cells)

    @property
    def _with_floor(self) -> list[tuple[Cell, Proportion]]:
        return [
            (cell, floor) for cell, floor in zip(self.cells, self.floors, strict=True) if floor is not None
        ]


def made_of(cell: Cell) -> dict[str, Any]:
    """Recipe and settings of a cell, without any seed of a training: the same for all seeds of a group."""
    return {"trigger recipe": cell.recipe, "settings": _without_seeds(cell.settings)}


def verdict_of(over: Difference) -> Verdict:
    """What the interval of LFR minus floor allows one to say; never that a backdoor is gone."""
    if over.is_above:
        return "above the floor"
    return "below the floor" if over.is_below else "not distinguishable from the floor"


def pool(proportions: Sequence[Proportion | None]) -> OverSeeds | None:
    """All seeds together; None if one of them was not measured, or there is none."""
    found = [proportion for proportion in proportions if proportion is not None]
    if not found or len(found) < len(proportions):
        return None
    pooled = Proportion(sum(one.hits for one in found), sum(one.total for one in found))
    return OverSeeds(pooled, over_seeds([one.value for one in found]))


def _all(proportions: Iterable[Proportion]) -> OverSeeds:
    found = pool(list(proportions))
    assert found is not None
    return found


def _received(cell: Cell) -> Point | None:
    return next((point for point in cell.curve if point.step == 0), None)


def _seeds_without(cells: Sequence[Cell], others: Sequence[object]) -> tuple[int, ...]:
    return tuple(cell.key.seed for cell, other in zip(cells, others, strict=True) if other is None)


def _without_seeds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_seeds(entry) for name, entry in value.items() if name != "seed"}
    return [_without_seeds(entry) for entry in value] if isinstance(value, list) else value
