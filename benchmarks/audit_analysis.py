"""Why attacks differ, from the cells of `lightpeft audit run`: Markdown tables for docs/audit.md.

python benchmarks/audit_analysis.py RUN

Three tables over all directions and seeds of a run: LFR at the attacker's, as received and after the user's
training, and its paired difference from vanilla; gradients by layer, and LFR without a layer's modules; how
far [CLS] of triggered texts moves. All in per cent or points but norms, cosines and weights.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightpeft.audit.cell import Cell, CellKey, LayerReading, load_cells

BASELINE = "vanilla"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    cells = load_cells(parser.parse_args().run / "cells")
    print("\n\n".join("\n".join(table) for table in (survival(cells), layers(cells), similarity(cells))))


def survival(cells: Sequence[Cell]) -> Iterator[str]:
    """Mean LFR at three moments; difference from vanilla, cell by cell, ± standard error of its mean."""
    yield "| form | attack | cells | LFR made | received | after | after − vanilla | CACC after |"
    yield "|---" * 8 + "|"
    for (form, attack), found in groups(cells):
        made = [cell.attacked.lfr.value for cell in found if cell.attacked is not None]
        moments = (made, *([p.lfr.value for p in points] for points in zip(*ends(found), strict=True)))
        parts = [f"{100 * statistics.fmean(values):.1f}" if values else "–" for values in moments]
        cacc = 100 * statistics.fmean(cell.after.cacc.value for cell in found)
        parts += [difference(found, cells), f"{cacc:.1f}"]
        yield f"| {form} | {attack} | {len(found)} | {' | '.join(parts)} |"


def layers(cells: Sequence[Cell]) -> Iterator[str]:
    """Mean norms of both gradients, their cosine, CLNorm's weight, and LFR with a layer's modules off."""
    yield "| form | attack | layer | ‖g_c‖ | ‖g_p‖ | cosine | w | LFR without |"
    yield "|---" * 8 + "|"
    for (form, attack), found in groups(cells):
        for readings in zip(*(cell.layers for cell in found), strict=True):
            yield f"| {form} | {attack} | {readings[0].title} | {' | '.join(layer(readings))} |"


def similarity(cells: Sequence[Cell]) -> Iterator[str]:
    """Mean cosine of [CLS] in triggered texts with the received module's, step by step."""
    steps = sorted({step for cell in cells for step, _ in cell.similarity})
    if not steps:
        return
    yield f"| form | attack | {' | '.join(f'step {step}' for step in steps)} |"
    yield "|---" * (2 + len(steps)) + "|"
    for (form, attack), found in groups(cells):
        values = [mean([dict(cell.similarity).get(step) for cell in found]) for step in steps]
        yield f"| {form} | {attack} | {' | '.join(values)} |"


def groups(cells: Sequence[Cell]) -> Iterator[tuple[tuple[str, str], list[Cell]]]:
    """Undefended cells by form and attack."""
    plain = [cell for cell in cells if cell.key.defence == "none"]
    for name in sorted({(cell.key.form, cell.key.attack) for cell in plain}):
        yield name, [cell for cell in plain if (cell.key.form, cell.key.attack) == name]


def ends(cells: Sequence[Cell]) -> list[tuple]:
    return [(cell.curve[0], cell.after) for cell in cells]


def difference(found: Sequence[Cell], cells: Sequence[Cell]) -> str:
    """Mean difference of LFR from vanilla's cell with the same tasks, form and seed."""
    vanilla = {place(cell.key): cell.after.lfr.value for cell in cells if cell.key.attack == BASELINE}
    gaps = [
        100 * (cell.after.lfr.value - vanilla[place(cell.key)])
        for cell in found
        if place(cell.key) in vanilla and cell.key.attack != BASELINE
    ]
    if len(gaps) < 2:
        return "–"
    return f"{statistics.fmean(gaps):+.1f} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.1f}"


def place(key: CellKey) -> tuple[str, str, str, str, int]:
    return (key.scenario, key.attacker_task, key.user_task, key.form, key.seed)


def layer(readings: Sequence[LayerReading]) -> list[str]:
    return [
        mean([one.clean_norm for one in readings]),
        mean([one.poisoned_norm for one in readings]),
        mean([one.cosine for one in readings]),
        mean([one.weight for one in readings]),
        mean([None if one.lfr_without is None else 100 * one.lfr_without.value for one in readings], 1),
    ]


def mean(values: Sequence[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.{digits}f}" if known else "–"


if __name__ == "__main__":
    main()
