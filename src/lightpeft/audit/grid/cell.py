"""One measured cell of an audit, as data: who attacked, what was done, CACC and LFR along the way."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightpeft.audit.choices import CLEAN, NO_DEFENCE
from lightpeft.audit.errors import AuditError
from lightpeft.audit.grid.scenarios import SCENARIOS
from lightpeft.audit.metrics import Proportion
from lightpeft.errors import LightPeftError
from lightpeft.files import read_json, save_json
from lightpeft.outputs import Output

FORMAT = 1


@dataclass(frozen=True)
class CellKey:
    """What makes a cell this one; its file is named by it."""

    scenario: str
    """A name of `SCENARIOS`."""
    attacker_task: str
    user_task: str
    attack: str
    """A name of the grid's, or `clean`."""
    form: str
    """Of PEFT: lora, sequential, parallel."""
    defence: str
    """A name of `DEFENCES`, or `none`."""
    seed: int

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise AuditError(f"unknown scenario {self.scenario!r}; choose one of {', '.join(SCENARIOS)}.")

    @property
    def file_name(self) -> str:
        """One JSON file a cell."""
        parts = [str(value).replace("/", "_") for value in dataclasses.astuple(self)]
        return "--".join(parts) + ".json"

    def floor(self) -> "CellKey":
        """The cell whose LFR is the clean floor of this one: never poisoned, not defended."""
        return dataclasses.replace(self, attack=CLEAN, defence=NO_DEFENCE)


@dataclass(frozen=True)
class Point:
    """CACC and LFR at one moment."""

    step: int
    """Optimizer steps of the user's training that were done."""
    cacc: Proportion
    lfr: Proportion


@dataclass(frozen=True)
class LayerReading:
    """One layer over the attacker's training."""

    title: str
    clean_norm: float
    """Mean ‖g_c‖₂ over all steps."""
    poisoned_norm: float
    """Mean ‖g_p‖₂, before the policy."""
    cosine: float | None
    """Mean cosine of g_c and g_p."""
    weight: float | None
    """w_l of CLNorm at the end; None for policies without."""
    lfr_without: Proportion | None = None
    """The attacker's LFR with the PEFT modules of this layer switched off; None where it was not measured."""


@dataclass(frozen=True)
class Cell:
    """A measured cell."""

    key: CellKey
    recipe: dict[str, Any]
    """Trigger recipe; empty for `clean`."""
    attacked: Point | None
    """The attacker's module on the attacker's own test set, before the user has it."""
    curve: tuple[Point, ...]
    """On the user's test set: as received (step 0), then along the user's training, without any guard."""
    after: Point
    """What counts: at the end, behind the defence."""
    floors: dict[str, Proportion] = field(default_factory=dict)
    """Of a clean cell: LFR under the trigger of each attack."""
    triggers_left: Proportion | None = None
    """Triggered test texts with at least one trigger after truncation."""
    rejected_clean: Proportion | None = None
    """Clean test texts that a guard refused."""
    rejected_triggered: Proportion | None = None
    layers: tuple[LayerReading, ...] = ()
    similarity: tuple[tuple[int, float], ...] = ()
    """(step, mean cosine of triggered texts' [CLS] with that of the module as received), step by step."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of attacker, user and data as JSON values."""
    seconds: float = 0.0
    """Of the user's part."""

    def floor_for(self, attack: str) -> Proportion | None:
        """Of a clean cell: the LFR without any backdoor, under the trigger of an attack."""
        return self.floors.get(attack)

    def save(self, folder: Path) -> None:
        """Write it under its key's name, all or nothing."""
        save_json(folder / self.key.file_name, {"format": FORMAT, **plain(self)}, Output.CELL)

    @classmethod
    def load(cls, path: Path) -> "Cell":
        """Read what `save` wrote.

        Raises:
            CheckpointError: not a JSON object.
            AuditError: not a cell, or numbers out of range.
        """
        value = read_json(path)
        try:
            if value.pop("format") != FORMAT:
                raise AuditError(f"its format is not {FORMAT}")
            return read_cell(value)
        except (KeyError, TypeError, ValueError, AttributeError, LightPeftError) as error:
            raise AuditError(f"{path} is not a cell of an audit: {error}") from error


def load_cells(folder: Path) -> list[Cell]:
    """All cells in a folder, by file name.

    Raises:
        AuditError: none, or a damaged one.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise AuditError(f"{folder} has no cells (*.json); give the folder that `audit run` wrote them to.")
    return [Cell.load(path) for path in paths]


def plain(value: Any) -> Any:
    """Cells and their parts as JSON values; a proportion is [hits, total]."""
    if isinstance(value, Proportion):
        return [value.hits, value.total]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def _proportion(value: Any) -> Proportion:
    hits, total = value
    return Proportion(int(hits), int(total))


def _maybe(value: Any) -> Proportion | None:
    return None if value is None else _proportion(value)


def read_point(value: Any) -> Point:
    """Read what `plain` wrote."""
    return Point(int(value["step"]), _proportion(value["cacc"]), _proportion(value["lfr"]))


def read_layers(value: Any) -> tuple[LayerReading, ...]:
    """Read what `plain` wrote."""
    return tuple(LayerReading(**one | {"lfr_without": _maybe(one["lfr_without"])}) for one in value)


def read_cell(value: dict[str, Any]) -> Cell:
    """Read what `plain` wrote."""
    read: dict[str, Any] = {
        "key": CellKey(**value["key"]),
        "attacked": None if value["attacked"] is None else read_point(value["attacked"]),
        "curve": tuple(read_point(point) for point in value["curve"]),
        "after": read_point(value["after"]),
        "floors": {name: _proportion(floor) for name, floor in value["floors"].items()},
        "triggers_left": _maybe(value["triggers_left"]),
        "rejected_clean": _maybe(value["rejected_clean"]),
        "rejected_triggered": _maybe(value["rejected_triggered"]),
        "layers": read_layers(value["layers"]),
        "similarity": tuple((int(step), float(cosine)) for step, cosine in value["similarity"]),
    }
    return Cell(**value | read)
