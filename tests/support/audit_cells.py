"""Cells of an audit with numbers made up, for reports."""

import dataclasses
from pathlib import Path
from typing import Any

from lightpeft.audit.choices import CLEAN
from lightpeft.audit.grid.cell import Cell, CellKey, LayerReading, Point
from lightpeft.audit.metrics import Proportion

TOTAL = 1000


def share(hits: int, total: int = TOTAL) -> Proportion:
    return Proportion(hits, total)


def cell_of(
    attack: str = "vanilla",
    defence: str = "none",
    seed: int = 0,
    *,
    lfr: int = 700,
    cacc: int = 900,
    floor: dict[str, int] | None = None,
    total: int = TOTAL,
    **changes: Any,
) -> Cell:
    """A cell; hits are out of `total`. `floor` is a clean cell's LFR by attack."""
    names = ("scenario", "attacker_task", "user_task", "form")
    key: dict[str, Any] = dict(zip(names, ("module_continued", "demo/a", "demo/b", "lora"), strict=True))
    key |= {name: changes.pop(name) for name in names if name in changes}
    after = Point(20, share(cacc, total), share(lfr, total))
    parts: dict[str, Any] = {
        "recipe": {} if attack == CLEAN else {"form": "words", "target": 1},
        "attacked": Point(0, share(950), share(990)),
        "curve": (Point(0, share(600), share(980)), after),
        "after": after,
        "floors": {name: share(hits, total) for name, hits in (floor or {}).items()},
        "triggers_left": share(1000),
        "seconds": 2.0,
    }
    return Cell(key=CellKey(**key, attack=attack, defence=defence, seed=seed), **(parts | changes))


def layers_of(
    count: int = 3, *, cosine: float | None = -0.2, weight: float | None = 0.9
) -> tuple[LayerReading, ...]:
    return tuple(
        LayerReading(f"layer {number}", 0.1 + number, 0.2 + number, cosine, weight, share(300 + 50 * number))
        for number in range(count)
    )


def grid() -> list[Cell]:
    """Two attacks and clean, two forms, a training defence and a guard, three seeds; nothing is missing."""
    cells = []
    for form, shift in (("lora", 0), ("sequential", 20)):
        for seed in range(3):
            floors = {"vanilla": 98 + seed, "gradient_control": 100 + seed}
            cells.append(cell_of("clean", seed=seed, cacc=910, lfr=98 + seed, floor=floors, form=form))
            for attack, lfr in (("vanilla", 500 + shift), ("gradient_control", 700 + 20 * seed)):
                layers, similarity = layers_of(), ((0, 1.0), (10, 0.8), (20, 0.7 - 0.1 * seed))
                cells += [
                    cell_of(attack, seed=seed, lfr=lfr, form=form, layers=layers, similarity=similarity),
                    cell_of(attack, "fresh", seed, lfr=101 + seed, cacc=870, form=form),
                    _guarded(cell_of(attack, "onion", seed, lfr=lfr, form=form), 300 - 10 * seed),
                ]
    return cells


def save_all(cells: list[Cell], folder: Path) -> Path:
    for cell in cells:
        cell.save(folder)
    return folder


def _guarded(cell: Cell, lfr: int) -> Cell:
    after = Point(20, share(890), share(lfr))
    return dataclasses.replace(cell, after=after, rejected_clean=share(20), rejected_triggered=share(400))
