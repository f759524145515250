"""The audit's page: one HTML file that needs nothing else, neither network nor script."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightpeft.audit.grid.cell import Cell
from lightpeft.audit.grid.report.aggregate import (
    by_data,
    by_setting,
    group_cells,
    missing_cells,
    optional_readings,
    removing,
)
from lightpeft.audit.grid.report.group import Group, made_of
from lightpeft.audit.grid.report.pictures import (
    curves_pictures,
    layers_pictures,
    same_layers,
    similarity_picture,
)
from lightpeft.audit.grid.report.scans import scanned
from lightpeft.audit.grid.report.tables import attack_tables, defence_tables
from lightpeft.audit.grid.report.wording import FILTERS, block_title
from lightpeft.outputs import Output, written_file
from lightpeft.report.figures import need

if TYPE_CHECKING:
    from jinja2 import Environment

TITLE = "Audit of received PEFT modules"


@dataclass(frozen=True)
class Figures:
    """Pictures of one thing, and what it is."""

    svgs: list[str]
    caption: str


@dataclass(frozen=True)
class Made:
    """How some cells were made."""

    title: str
    text: str
    """Recipe and settings as JSON."""


def write_audit_report(path: Path, cells: Sequence[Cell], scans: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the page to `path`, all or nothing.

    Raises:
        ConfigError: the extra `report` is not installed.
        AuditError: no cells, one key twice, or a scan that is not one.
    """
    with written_file(path, Output.PAGE) as beside:
        beside.write_text(render_audit_report(cells, scans), encoding="utf-8")


def render_audit_report(cells: Sequence[Cell], scans: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page as HTML text. Every text from outside is escaped; the same cells give the same page.

    Args:
        cells: of one grid, in any order.
        scans: what `scan` found in modules, each with `folder`, `verdict`, `findings` (`rule`, `level`,
            `message`) and `seconds`.

    Raises:
        ConfigError: the extra `report` is not installed.
        AuditError: no cells, one key twice, or a scan that is not one.
    """
    groups = group_cells(cells)
    return (
        templates()
        .get_template("audit.html.j2")
        .render(
            title=TITLE,
            groups=groups,
            cells=[cell for group in groups for cell in group.cells],
            settings=by_setting(groups),
            removing=removing(groups),
            attacks=attack_tables(groups),
            defences=defence_tables(groups),
            curves=_curves(groups),
            defended_curves=_defended_curves(groups),
            layers=_layers(groups),
            similarities=_similarities(groups),
            missing=missing_cells(cells),
            readings=optional_readings(groups),
            scans=scanned(scans),
            made=_made(groups),
        )
    )


def templates() -> "Environment":
    """Where the page's templates are, with the words and numbers that they use as filters.

    Raises:
        ConfigError: the extra `report` is not installed.
    """
    need("jinja2")
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    rooms = [PackageLoader(name, "") for name in (__package__, "lightpeft.report")]
    found = Environment(
        loader=ChoiceLoader(rooms),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= FILTERS
    found.tests["in_all"] = lambda name, counts: counts[name][0] == counts[name][1]
    return found


def _curves(groups: Sequence[Group]) -> list[Figures]:
    figures: list[Figures] = []
    for found in _by_form([group for group in groups if not group.is_defended and _has_curve(group)]):
        if any(not group.is_clean for group in found):
            title = _form_title(found[0])
            svgs = curves_pictures(f"curves-{len(figures)}", found, lambda group: group.key.attack, title)
            figures.append(Figures(svgs, title))
    return figures


def _defended_curves(groups: Sequence[Group]) -> list[Figures]:
    """Defences that train in another way; guards leave the training and its curve as they are."""
    figures: list[Figures] = []
    for found in by_setting([group for group in groups if not group.is_clean and _has_curve(group)]):
        plain = [group for group in found if not group.is_defended]
        others = [group for group in found if group.is_defended and not _same_curves(group, plain)]
        if others:
            title = f"{_form_title(found[0])}, attack {found[0].key.attack}"
            name = f"defended-{len(figures)}"
            svgs = curves_pictures(name, [*plain, *others], lambda group: group.key.defence, title)
            figures.append(Figures(svgs, title))
    return figures


def _layers(groups: Sequence[Group]) -> list[Figures]:
    figures: list[Figures] = []
    for found in by_setting([group for group in groups if not group.is_clean and same_layers(group.cells)]):
        title = f"{_form_title(found[0])}, attack {found[0].key.attack}"
        figures.append(Figures(layers_pictures(f"layers-{len(figures)}", found[0].cells, title), title))
    return figures


def _similarities(groups: Sequence[Group]) -> list[Figures]:
    figures: list[Figures] = []
    shown = [g for g in groups if not g.is_defended and all(cell.similarity for cell in g.cells)]
    for found in _by_form(shown):
        title = _form_title(found[0])
        figures.append(Figures([similarity_picture(f"similarity-{len(figures)}", found, title)], title))
    return figures


def _by_form(groups: Sequence[Group]) -> list[list[Group]]:
    forms = sorted({group.key.form for group in groups})
    return [
        of_form
        for found in by_data(groups)
        for form in forms
        if (of_form := [group for group in found if group.key.form == form])
    ]


def _has_curve(group: Group) -> bool:
    return all(len(cell.curve) > 1 for cell in group.cells)


def _same_curves(group: Group, others: Sequence[Group]) -> bool:
    return any(
        [cell.curve for cell in group.cells] == [cell.curve for cell in other.cells] for other in others
    )


def _form_title(group: Group) -> str:
    return f"{block_title(group.key)}, {group.key.form}"


def _made(groups: Sequence[Group]) -> list[Made]:
    """Recipe and settings of every cell; those that differ in nothing but the seed together."""
    names: dict[str, list[str]] = {}
    for group in groups:
        for cell in group.cells:
            text = json.dumps(made_of(cell), indent=2, ensure_ascii=False, sort_keys=True)
            names.setdefault(text, []).append(cell.key.file_name)
    return [Made(", ".join(found), text) for text, found in names.items()]
