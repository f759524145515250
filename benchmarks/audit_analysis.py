"""Why attacks differ, from the cells of `lightpeft audit run`: Markdown tables for docs/audit.md.

python benchmarks/audit_analysis.py RUN

Three tables over all directions and seeds of a run: LFR at the attacker's, as received and after the user's
training, and its paired difference from vanilla; gradients by layer, and LFR without a layer's modules; how
far [CLS] of triggered texts moves. All in per cent or points but norms, cosines and weights.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightpeft.audit.choices import NO_DEFENCE
from lightpeft.audit.grid.cell import Cell, LayerReading, load_cells
from lightpeft.audit.metrics import Proportion

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
        moments = zip(*((cell.attacked, cell.curve[0], cell.after) for cell in found), strict=True)
        parts = [percent([point and point.lfr for point in points]) for points in moments]
        parts += [difference(found, cells), percent([cell.after.cacc for cell in found])]
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
    plain = [cell for cell in cells if cell.key.defence == NO_DEFENCE]
    for name in sorted({(cell.key.form, cell.key.attack) for cell in plain}):
        yield name, [cell for cell in plain if (cell.key.form, cell.key.attack) == name]


def difference(found: Sequence[Cell], cells: Sequence[Cell]) -> str:
    """Mean difference of LFR from vanilla's cell with the same tasks, form and seed."""
    values = {cell.key: 100 * cell.after.lfr.value for cell in cells}
    pairs = [(cell.key, dataclasses.replace(cell.key, attack=BASELINE)) for cell in found]
    gaps = [values[key] - values[other] for key, other in pairs if other in values and other != key]
    if len(gaps) < 2:
        return "–"
    return f"{statistics.fmean(gaps):+.1f} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.1f}"


def layer(readings: Sequence[LayerReading]) -> list[str]:
    return [
        mean([one.clean_norm for one in readings]),
        mean([one.poisoned_norm for one in readings]),
        mean([one.cosine for one in readings]),
        mean([one.weight for one in readings]),
        percent([one.lfr_without for one in readings]),
    ]


def percent(found: Sequence[Proportion | None]) -> str:
    return mean([one and 100 * one.value for one in found], 1)


def mean(values: Sequence[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.{digits}f}" if known else "–"


if __name__ == "__main__":
    main()
