"""Tables of an audit: as rows of text for the page, for the terminal, and as Markdown for documents."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from lightpeft.audit.grid.cell import Cell, CellKey
from lightpeft.audit.grid.report.aggregate import by_data, by_setting, group_cells
from lightpeft.audit.grid.report.group import Group, OverSeeds
from lightpeft.audit.grid.report.wording import (
    block_title,
    difference_text,
    direction,
    interval_text,
    scenario_title,
    seeds_text,
)
from lightpeft.report.tables import markdown
from lightpeft.report.units import MISSING, seconds, seed_names

NO_FLOOR = "no floor measured"
IS_FLOOR = "is the floor"
Columns = dict[str, Callable[[Group], str]]
"""The text of a group by its heading."""


@dataclass(frozen=True)
class TextTable:
    """A table of texts."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def attack_tables(groups: Sequence[Group]) -> list[TextTable]:
    """Attack × form, one table a scenario and direction; nothing defended."""
    return [
        _table(found, ATTACK_COLUMNS)
        for found in by_data([group for group in groups if not group.is_defended])
    ]


def defence_tables(groups: Sequence[Group]) -> list[TextTable]:
    """Attack × form × defence, one table a scenario and direction; `none` is the first row of each attack."""
    return [_table(found, DEFENCE_COLUMNS) for found in by_data(_with_defences(groups))]


def summary_tables(cells: Sequence[Cell]) -> list[Table]:
    """LFR, floor and CACC of every attack and defence, for the terminal: a table for each data and scenario.

    Raises:
        AuditError: no cells, or one key twice.
    """
    found = []
    for groups in by_data(group_cells(cells)):
        texts = _table(groups, SUMMARY_COLUMNS)
        table = Table(title=Text(texts.title))
        for place, heading in enumerate(texts.headings):
            table.add_column(heading, justify="left" if place < 3 else "right")
        for row in texts.rows:
            table.add_row(*map(Text, row))
        found.append(table)
    return found


def markdown_table(cells: Sequence[Cell], rows: Literal["attacks", "defences"] = "attacks") -> str:
    """A Markdown table for documents, so that no number in them is typed by hand.

    Args:
        rows: `attacks`: undefended attacks × forms, two columns a direction (LFR and CACC, mean ± standard
            deviation over seeds, in per cent). `defences`: one row for each attack, form, direction, defence.

    Raises:
        AuditError: no cells, or one key twice.
    """
    groups = group_cells(cells)
    table = _attacks_by_direction(groups) if rows == "attacks" else _flat_defences(groups)
    return markdown(table.headings, table.rows)


def _attacks_by_direction(groups: Sequence[Group]) -> TextTable:
    plain = [group for group in groups if not group.is_defended]
    directions = list(dict.fromkeys(_short_title(group.key, plain) for group in plain))
    rows: dict[tuple[str, str], dict[str, Group]] = {}
    for group in sorted(plain, key=lambda group: (group.key.form, not group.is_clean, group.key.attack)):
        row = rows.setdefault((group.key.form, group.key.attack), {})
        row[_short_title(group.key, plain)] = group
    headings = [f"{title}: {number}, %" for title in directions for number in ("LFR", "CACC")]
    body = [
        (*names, *(text for title in directions for text in _both(found.get(title))))
        for names, found in rows.items()
    ]
    return TextTable("", ("form", "attack", *headings), tuple(body))


def _flat_defences(groups: Sequence[Group]) -> TextTable:
    """Without the time, which depends on the machine."""
    shown = _with_defences(groups)
    columns: Columns = {"data": lambda group: _short_title(group.key, shown), **DEFENCE_COLUMNS}
    columns.pop("time")
    return _table(shown, columns)


def _with_defences(groups: Sequence[Group]) -> list[Group]:
    """Settings that were measured with a defence too."""
    settings = by_setting(groups)
    return [group for found in settings if any(one.is_defended for one in found) for group in found]


def _short_title(key: CellKey, groups: Sequence[Group]) -> str:
    """The direction; with the scenario where there are several."""
    if len({group.key.scenario for group in groups}) == 1:
        return direction(key)
    return f"{scenario_title(key)}, {direction(key)}"


def _both(group: Group | None) -> tuple[str, str]:
    return (MISSING, MISSING) if group is None else (_lfr(group), seeds_text(group.cacc))


def _lfr(group: Group) -> str:
    """Of `clean`, which has an LFR under each attack's trigger, the lowest and the highest."""
    if not group.is_clean:
        return seeds_text(group.lfr)
    texts = [seeds_text(found) for found in _by_height(group.floors_of_attacks.values())]
    return " / ".join(dict.fromkeys((*texts[:1], *texts[-1:]))) or MISSING


def _by_height(found: Iterable[OverSeeds]) -> list[OverSeeds]:
    return sorted(found, key=lambda one: one.pooled.value)


def _floor(group: Group) -> str:
    if group.is_clean and not group.is_defended:
        return IS_FLOOR
    return NO_FLOOR if group.floor is None else seeds_text(group.floor)


def _cost(group: Group) -> str:
    if not group.is_defended:
        return MISSING
    return "not measured without it" if group.cost is None else difference_text(group.cost)


def _reading(group: Group) -> str:
    if group.is_clean:
        return MISSING
    if group.verdict is None:
        return NO_FLOOR
    without = group.seeds_without_floor
    return group.verdict + (f"; no floor for {seed_names(without)}" if without else "")


def _share(found: OverSeeds | None) -> str:
    return MISSING if found is None else interval_text(found.pooled)


def _seeds(group: Group) -> str:
    return ", ".join(map(str, group.seeds))


def _table(groups: Sequence[Group], columns: Columns) -> TextTable:
    rows = (tuple(text(group) for text in columns.values()) for group in groups)
    return TextTable(block_title(groups[0].key) if groups else "", tuple(columns), tuple(rows))


def _of_attacks(number: str) -> Callable[[Group], str]:
    """A number that `clean` has not."""
    return lambda group: MISSING if group.is_clean else seeds_text(getattr(group, number))


_NAMES: Columns = {"form": lambda group: group.key.form, "attack": lambda group: group.key.attack}
_DEFENCE: Columns = {"defence": lambda group: group.key.defence}
_FLOOR: Columns = {
    "floor, %": _floor,
    "LFR − floor, points": lambda group: difference_text(group.over_floor),
}
_CACC: Columns = {"CACC, %": lambda group: seeds_text(group.cacc)}
SUMMARY_COLUMNS: Columns = {**_NAMES, **_DEFENCE, "LFR, %": _lfr, **_FLOOR, **_CACC}
ATTACK_COLUMNS: Columns = {
    **_NAMES,
    "seeds": _seeds,
    "LFR before, %": _of_attacks("attacked"),
    "LFR received, %": _of_attacks("received"),
    "LFR after, %": _lfr,
    **_FLOOR,
    "reading": _reading,
    **_CACC,
    "triggers left": lambda group: _share(group.triggers_left),
}
DEFENCE_COLUMNS: Columns = {
    **_NAMES,
    **_DEFENCE,
    "seeds": _seeds,
    "LFR, %": _lfr,
    **_FLOOR,
    "reading": _reading,
    **_CACC,
    "cost in CACC, points": _cost,
    "rejected clean": lambda group: _share(group.rejected_clean),
    "rejected triggered": lambda group: _share(group.rejected_triggered),
    "time": lambda group: seconds(group.seconds),
}
