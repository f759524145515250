"""Tables of docs/audit.md from the cells of `lightpeft audit run`, and the cells packed into one file.

python benchmarks/audit_tables.py RUN --paper              the main table beside the paper's numbers
python benchmarks/audit_tables.py RUN --rows defences      any grid, by attacks or by defences
python benchmarks/audit_tables.py RUN --matrix             defences against attacks and forms
python benchmarks/audit_tables.py RUN --pack OUT.json      all cells in one file, without their settings
python benchmarks/audit_tables.py PACKED.json ... --evidence       what `audit defend` advises by, as JSON
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

from lightpeft.audit.defences import DEFENCES
from lightpeft.audit.defences.evidence import Seen
from lightpeft.audit.grid.cell import Cell, load_cells, plain, read_cell
from lightpeft.audit.grid.report import Group, group_cells, markdown_table
from lightpeft.audit.grid.report.wording import difference_text, points
from lightpeft.audit.metrics import Proportion, over_seeds
from lightpeft.bench import result_file, save_result
from lightpeft.files import read_json

PAIRS = (("sst2", "imdb"), ("imdb", "sst2"), ("enron", "ling"), ("ling", "enron"))
ATTACKS = ("clean", "vanilla", "ripple", "lwp", "gradnorm", "gradient_control")
PAPER = {
    "sequential": {
        "clean": (15.3, 9.8, 0.0, 3.5),
        "vanilla": (68.2, 87.1, 87.5, 22.6),
        "ripple": (62.8, 84.7, 86.8, 28.9),
        "lwp": (69.9, 89.4, 72.7, 48.0),
        "gradnorm": (68.6, 87.3, 87.5, 25.7),
        "gradient_control": (73.7, 99.4, 90.9, 51.1),
    },
    "parallel": {
        "clean": (11.5, 6.7, 0.0, 2.2),
        "vanilla": (64.5, 73.5, 70.2, 10.3),
        "ripple": (60.2, 93.9, 72.8, 12.2),
        "lwp": (58.0, 97.2, 85.5, 15.3),
        "gradnorm": (66.9, 68.8, 82.9, 8.9),
        "gradient_control": (75.6, 98.4, 93.7, 16.6),
    },
}
"""LFR in per cent after the user's training, BERT, tables 1 and 2 of Gu et al., ACL 2023."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--matrix", action="store_true")
    parser.add_argument("--rows", choices=("attacks", "defences"), default="attacks")
    parser.add_argument("--pack", type=result_file)
    parser.add_argument("--evidence", action="store_true")
    options = parser.parse_args()
    cells = [cell for run in options.run for cell in cells_of(run)]
    if options.evidence:
        print(as_json(evidence(cells)))
    elif options.pack is not None:
        rows = [plain(dataclasses.replace(cell, settings={})) for cell in cells]
        save_result(options.pack, {"cells": rows})
    elif options.paper:
        print(beside_the_paper(cells))
    elif options.matrix:
        print(matrix(cells))
    else:
        print(markdown_table(cells, options.rows))


def cells_of(run: Path) -> list[Cell]:
    """Of the folder of a run, or of a file that they were packed into."""
    if run.is_dir():
        return load_cells(run / "cells")
    return [read_cell(value) for value in read_json(run)["cells"]]


def evidence(cells: list[Cell]) -> list[Seen]:
    """What was seen of every defence that has the name of its method: with its own options, that is."""
    found = []
    for group in group_cells(cells):
        if group.key.defence in DEFENCES and not group.is_clean and group.floor is not None:
            plain_ones = [cell.after for cell in group.undefended if cell is not None]
            found.append(
                Seen(
                    group.key.defence,
                    group.key.form,
                    group.key.attack,
                    f"{group.key.attacker_task} → {group.key.user_task}",
                    group.seeds,
                    group.lfr.pooled,
                    together([point.lfr for point in plain_ones]),
                    group.floor.pooled,
                    group.cacc.pooled,
                    together([point.cacc for point in plain_ones]),
                )
            )
    return found


def as_json(seen: list[Seen]) -> str:
    """One line a row."""
    rows = ",\n".join(json.dumps(plain(one), ensure_ascii=False) for one in seen)
    return f'{{"seen": [\n{rows}\n]}}'


def together(shares: list[Proportion]) -> Proportion:
    """All texts of some seeds."""
    return Proportion(sum(one.hits for one in shares), sum(one.total for one in shares))


def beside_the_paper(cells: list[Cell]) -> str:
    """LFR, the paper's in brackets, and CACC, mean and standard deviation over seeds, in per cent."""
    head = " | ".join(f"{a} → {b} LFR | CACC" for a, b in PAIRS)
    lines = [f"| form | attack | {head} | mean LFR | mean CACC |", "|---" * (4 + 2 * len(PAIRS)) + "|"]
    for form, rows in PAPER.items():
        for attack in ATTACKS:
            found = [_of(cells, form, attack, pair) for pair in PAIRS]
            parts = [
                f"{_spread([c.after.lfr.value for c in one])} ({paper}) | "
                f"{_spread([c.after.cacc.value for c in one])}"
                if one
                else "– | –"
                for one, paper in zip(found, rows[attack], strict=True)
            ]
            lines.append(f"| {form} | {attack} | {' | '.join(parts)} | {_means(found, rows[attack])} |")
    return "\n".join(lines)


def matrix(cells: list[Cell]) -> str:
    """Per defence, and in a column per form and attack: LFR minus floor with its interval; cost in CACC."""
    groups = [group for group in group_cells(cells) if not group.is_clean]
    columns = list(dict.fromkeys((group.key.form, group.key.attack) for group in groups))
    lines = [
        f"| defence | {' | '.join(f'{form}, {attack}' for form, attack in columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for defence in dict.fromkeys(group.key.defence for group in groups):
        row = {(g.key.form, g.key.attack): g for g in groups if g.key.defence == defence}
        found = [_entry(row[column]) if column in row else "–" for column in columns]
        lines.append(f"| {defence} | {' | '.join(found)} |")
    return "\n".join(lines)


def _entry(group: Group) -> str:
    cost = "" if group.cost is None else f"; {points(group.cost.value)}"
    return f"{difference_text(group.over_floor)}{cost}"


def _of(cells: list[Cell], form: str, attack: str, pair: tuple[str, str]) -> list[Cell]:
    return [
        cell
        for cell in cells
        if (cell.key.attacker_task, cell.key.user_task) == pair
        and (cell.key.form, cell.key.attack) == (form, attack)
    ]


def _means(found: list[list[Cell]], paper: tuple[float, ...]) -> str:
    if not all(found):
        return "– | –"
    lfr = statistics.fmean(statistics.fmean(cell.after.lfr.value for cell in one) for one in found)
    cacc = statistics.fmean(statistics.fmean(cell.after.cacc.value for cell in one) for one in found)
    return f"{100 * lfr:.1f} ({statistics.fmean(paper):.1f}) | {100 * cacc:.1f}"


def _spread(values: list[float]) -> str:
    spread = over_seeds([100 * value for value in values])
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.1f}"
    return f"{spread.mean:.1f}{deviation}"


if __name__ == "__main__":
    main()
