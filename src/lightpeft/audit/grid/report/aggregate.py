"""From cells to groups, what is missing in their grid, and their curves over seeds. Numbers only, no text."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lightpeft.audit.choices import CLEAN, NO_DEFENCE
from lightpeft.audit.errors import AuditError
from lightpeft.audit.grid.cell import Cell, CellKey, Point
from lightpeft.audit.grid.report.group import Group
from lightpeft.audit.metrics import Proportion, Spread, over_seeds


@dataclass(frozen=True)
class Moment:
    """A number at one step of the user's training, over seeds."""

    step: int
    spread: Spread


def group_cells(cells: Sequence[Cell]) -> list[Group]:
    """Groups in the order of scenario, tasks, form, attack (`clean` first) and defence (`none` first).

    Raises:
        AuditError: no cells, or one key twice.
    """
    if not cells:
        raise AuditError("there are no cells to report; run `lightpeft audit run` first.")
    by_key: dict[CellKey, Cell] = {}
    for cell in cells:
        if cell.key in by_key:
            raise AuditError(f"two cells are {cell.key.file_name}; report the cells of one grid at a time.")
        by_key[cell.key] = cell
    together: dict[CellKey, list[Cell]] = defaultdict(list)
    for key in sorted(by_key, key=_place):
        together[dataclasses.replace(key, seed=0)].append(by_key[key])
    return [_group(tuple(found), by_key) for found in together.values()]


def by_data(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one scenario and one direction together."""
    return _together(groups, lambda key: (key.scenario, key.attacker_task, key.user_task))


def by_setting(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that differ in nothing but the defence together."""
    return _together(
        groups, lambda key: (key.scenario, key.attacker_task, key.user_task, key.form, key.attack)
    )


def removing(groups: Sequence[Group]) -> dict[str, tuple[int, int]]:
    """How often each defence left no more than the floor, of how often there was more without it.

    Returns:
        by defence, the best first, of equal ones the cheapest: settings at the floor or below, and settings
        with a floor in which LFR without a defence is above it.
    """
    held = [
        group
        for found in by_setting(groups)
        if any(not one.is_defended and one.over_floor and one.over_floor.is_above for one in found)
        for group in found
        if group.is_defended and group.over_floor
    ]
    names = dict.fromkeys(group.key.defence for group in held)
    of_name = {name: [group for group in held if group.key.defence == name] for name in names}
    counts = {
        name: (sum(not one.over_floor.is_above for one in found if one.over_floor), len(found))
        for name, found in of_name.items()
    }
    prices = {name: sum(one.price for one in found) / len(found) for name, found in of_name.items()}
    order = sorted(
        names, key=lambda name: (-counts[name][0] / counts[name][1], -counts[name][1], prices[name])
    )
    return {name: counts[name] for name in order}


def missing_cells(cells: Iterable[Cell]) -> dict[CellKey, tuple[int, ...]]:
    """What a full grid of the attacks, forms, defences and seeds that occur would have more.

    `clean` is expected without a defence only.

    Returns:
        keys with seed 0, each with the seeds that are missing.
    """
    keys = {cell.key for cell in cells}
    seeds = sorted({key.seed for key in keys})
    expected = set[CellKey]()
    for scenario, attacker, user in {(key.scenario, key.attacker_task, key.user_task) for key in keys}:
        block = {k for k in keys if (k.scenario, k.attacker_task, k.user_task) == (scenario, attacker, user)}
        attacks, forms, defences = (
            {getattr(k, name) for k in block} for name in ("attack", "form", "defence")
        )
        pairs = {(attack, defence) for attack in attacks - {CLEAN} for defence in defences | {NO_DEFENCE}}
        for (attack, defence), form in itertools.product(pairs | {(CLEAN, NO_DEFENCE)}, forms):
            expected.add(CellKey(scenario, attacker, user, attack, form, defence, 0))
    missing = {
        key: tuple(seed for seed in seeds if dataclasses.replace(key, seed=seed) not in keys)
        for key in sorted(expected, key=_place)
    }
    return {key: found for key, found in missing.items() if found}


def optional_readings(groups: Sequence[Group]) -> list[tuple[str, int, int]]:
    """What may be left out of a cell, how many attacked cells without a defence have it, and of how many."""
    plain = [cell for group in groups if not (group.is_clean or group.is_defended) for cell in group.cells]
    optional: dict[str, Callable[[Cell], bool]] = {
        "LFR on the attacker's own test set": lambda cell: cell.attacked is not None,
        "The retention curve": lambda cell: len(cell.curve) > 1,
        "Triggers left after truncation": lambda cell: cell.triggers_left is not None,
        "Similarity of [CLS]": lambda cell: bool(cell.similarity),
        "Readings by layer": lambda cell: bool(cell.layers),
    }
    return [(name, sum(map(has, plain)), len(plain)) for name, has in optional.items()]


def along_training(cells: Sequence[Cell], number: Callable[[Point], Proportion]) -> list[Moment]:
    """A number of the retention curve over seeds, at the steps that all of these cells have."""
    curves = [{point.step: number(point).value for point in cell.curve} for cell in cells]
    return _moments(curves)


def similarity_along_training(cells: Sequence[Cell]) -> list[Moment]:
    """The cosine of [CLS] with the received module's over seeds, at the steps that all cells have."""
    return _moments([dict(cell.similarity) for cell in cells])


def _together(groups: Sequence[Group], name: Callable[[CellKey], tuple[str, ...]]) -> list[list[Group]]:
    found: dict[tuple[str, ...], list[Group]] = defaultdict(list)
    for group in groups:
        found[name(group.key)].append(group)
    return list(found.values())


def _moments(curves: Sequence[dict[int, float]]) -> list[Moment]:
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [Moment(step, over_seeds([curve[step] for curve in curves])) for step in steps]


def _group(cells: tuple[Cell, ...], by_key: dict[CellKey, Cell]) -> Group:
    plain = (dataclasses.replace(cell.key, defence=NO_DEFENCE) for cell in cells)
    return Group(
        cells, tuple(_floor(cell, by_key) for cell in cells), tuple(by_key.get(key) for key in plain)
    )


def _floor(cell: Cell, by_key: dict[CellKey, Cell]) -> Proportion | None:
    clean = by_key.get(cell.key.floor())
    return None if clean is None else clean.floor_for(cell.key.attack)


def _place(key: CellKey) -> tuple[object, ...]:
    first = (key.scenario, key.attacker_task, key.user_task, key.form)
    return (*first, key.attack != CLEAN, key.attack, key.defence != NO_DEFENCE, key.defence, key.seed)
