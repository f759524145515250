"""How sure the numbers of an audit are, and what was not measured, in plain sentences."""

from collections.abc import Callable, Sequence

from lightpeft.audit.cell import Cell, CellKey
from lightpeft.audit.metrics import LEVEL
from lightpeft.audit.report.aggregate import made_of, missing_cells
from lightpeft.audit.report.group import Group
from lightpeft.audit.report.wording import direction, scenario_title
from lightpeft.report.units import seed_names


def how_sure(groups: Sequence[Group]) -> list[str]:
    """What stands behind the numbers, and how to read the intervals."""
    cells = [cell for group in groups for cell in group.cells]
    seeds = tuple(sorted({cell.key.seed for cell in cells}))
    clean = _range([cell.after.cacc.total for cell in cells])
    triggered = _range([cell.after.lfr.total for cell in cells])
    found = [
        f"{len(cells)} cells, {seed_names(seeds)}. Each CACC is from {clean} clean texts, each LFR from "
        f"{triggered} triggered texts of other classes than the target.",
        "“±” is the sample standard deviation over seeds; a number without it is from a single seed.",
        f"Intervals have a level of {100 * LEVEL:.0f} %: Wilson's for a share, Newcombe's for a difference. "
        "They pool the texts of all seeds as if each were new. The seeds mostly share test texts and differ "
        "in training, so read “±” as well: it knows what the interval does not.",
        "About one interval in twenty misses its number by chance, and the cheapest of many defences is also "
        "the luckiest of them. A defence that is to be relied on should be measured again with new seeds.",
        "“Not distinguishable from the floor” means that these texts do not show a difference, not that "
        "there is none; the fewer texts, the less is seen. Only the triggers of this grid were tried.",
    ]
    if len(seeds) == 1:
        found.append("There is only one seed, so nothing is known about the spread between trainings.")
    return found


def not_measured(groups: Sequence[Group]) -> list[str]:
    """Missing floors, missing cells and missing readings, each by name."""
    cells = [cell for group in groups for cell in group.cells]
    found = [_no_floor(group) for group in groups if group.seeds_without_floor]
    found += [
        f"CACC without a defence: {_name(group.key)}, {seed_names(group.seeds_without_undefended)}."
        for group in groups
        if group.is_defended and group.seeds_without_undefended
    ]
    found += [f"Cell: {_name(key)}, {seed_names(seeds)}." for key, seeds in missing_cells(cells).items()]
    found += [
        f"Over seeds that are not alike: {_name(group.key)} has different trigger recipes or settings."
        for group in groups
        if any(made_of(cell) != made_of(group.cells[0]) for cell in group.cells)
    ]
    return found + _readings([cell for group in groups if _is_plain_attack(group) for cell in group.cells])


def _is_plain_attack(group: Group) -> bool:
    return not group.is_clean and not group.is_defended


def _readings(attacked: Sequence[Cell]) -> list[str]:
    optional: dict[str, Callable[[Cell], bool]] = {
        "LFR on the attacker's own test set": lambda cell: cell.attacked is not None,
        "The retention curve": lambda cell: len(cell.curve) > 1,
        "Triggers left after truncation": lambda cell: cell.triggers_left is not None,
        "Similarity of [CLS]": lambda cell: bool(cell.similarity),
        "Readings by layer": lambda cell: bool(cell.layers),
    }
    found = []
    for name, has in optional.items():
        count = sum(map(has, attacked))
        if count < len(attacked):
            found.append(f"{name}: measured in {count} of {len(attacked)} attacked cells without a defence.")
    return found


def _no_floor(group: Group) -> str:
    key = group.key.floor()
    return (
        f"Floor of {_name(group.key)}, {seed_names(group.seeds_without_floor)}: no cell {_name(key)} of "
        "the same seed has the LFR under this attack's trigger."
    )


def _name(key: CellKey) -> str:
    parts = (
        scenario_title(key),
        direction(key),
        key.form,
        f"attack {key.attack}",
        f"defence {key.defence}",
    )
    return ", ".join(parts)


def _range(totals: Sequence[int]) -> str:
    least, most = min(totals), max(totals)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
