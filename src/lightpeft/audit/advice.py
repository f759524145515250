"""What to do with a received module, by what was measured of the defences: the audit's advice, as data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from lightpeft.audit.choices import NO_DEFENCE
from lightpeft.audit.defences import DEFENCES
from lightpeft.audit.defences.evidence import Seen, evidence
from lightpeft.audit.errors import AuditError
from lightpeft.audit.marks import read_mark
from lightpeft.audit.metrics import Proportion
from lightpeft.checkpoint import is_light_checkpoint
from lightpeft.files import read_json

FRESH = "discard"
"""The defence that keeps nothing of the module."""


@dataclass(frozen=True)
class Record:
    """One defence, and all that was seen of it."""

    method: str
    seen: tuple[Seen, ...]

    @property
    def time(self) -> str:
        """What it takes."""
        return DEFENCES[self.method].time

    def worst(self, form: str | None = None) -> Seen | None:
        """Where it left most of a backdoor: in a form of PEFT, or in all; None where it was not measured."""
        seen = [one for one in self.seen if form in (None, one.form)]
        return max(seen, key=lambda one: one.left.value, default=None)

    @property
    def costs(self) -> tuple[float, float]:
        """The lowest and the highest cost in CACC."""
        values = [one.cost.value for one in self.seen]
        return min(values), max(values)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "method": self.method,
            "what": what(self.method),
            "time": self.time,
            "seen": [_as_json(one) for one in self.seen],
        }


@dataclass(frozen=True)
class Advice:
    """What is advised for one module."""

    form: str | None
    """lora, sequential or parallel, as it is measured; None for others."""
    is_marked: bool
    """Whether it is marked as poisoned by lightpeft's audit."""
    records: tuple[Record, ...]
    """Of the defences that were measured everywhere: first the one that left least where it left most, in
    modules of the same form, or of all forms where that one was not measured."""
    elsewhere: tuple[Record, ...]
    """Of those that were measured in some settings only, in the order of their table."""

    @property
    def first(self) -> Record:
        """The best of all."""
        return self.records[0]

    @property
    def keeping(self) -> Record:
        """The best of those that keep something of the module."""
        return next(one for one in self.records if one.method not in (FRESH, NO_DEFENCE))

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms of PEFT that defences were measured with."""
        return tuple(sorted({one.form for one in self.first.seen}))

    @property
    def unproven(self) -> dict[str, str]:
        """Defences that are left out, each with the reason."""
        return {name: row.unproven for name, row in DEFENCES.items() if row.unproven}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; proportions are [hits, total]."""
        return {
            "form": self.form,
            "marked": self.is_marked,
            "advice": [self.first.method, self.keeping.method],
            "defences": [one.to_dict() for one in self.records],
            "measured_in_part": [one.to_dict() for one in self.elsewhere],
            "left_out": self.unproven,
        }


def advise(folder: str | Path) -> Advice:
    """What is advised for a received module, of which nothing but its configuration is read.

    Raises:
        CheckpointError: no PEFT module is there, or its mark is damaged.
        AuditError: a light checkpoint, which no defence takes.
    """
    directory = Path(folder)
    if is_light_checkpoint(directory):
        raise AuditError(f"{directory} is cut already; a defence takes the module as it was before.")
    form = form_of(read_json(directory / CONFIG_NAME))
    return Advice(form, read_mark(directory) is not None, *ranked(evidence(), form))


def ranked(seen: Sequence[Seen], form: str | None = None) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Defences by what they left at worst; and those that are not measured in every setting.

    Args:
        form: that counts; all of them where it is None or was not measured. What is best in one form need not
            be so in another.
    """
    known = form if any(one.form == form for one in seen) else None
    settings = {one.setting for one in seen}
    records = [
        Record(name, tuple(one for one in seen if one.defence == name))
        for name, row in DEFENCES.items()
        if not row.unproven
    ]
    whole = [one for one in records if {row.setting for row in one.seen} == settings]
    return (
        tuple(sorted(whole, key=lambda one: _left(one.worst(known)))),
        tuple(one for one in records if one.seen and one not in whole),
    )


def _left(seen: Seen | None) -> float:
    assert seen is not None
    return seen.left.value


def form_of(config: dict[str, Any]) -> str | None:
    """The form of PEFT of a configuration, by the names of the evidence; None for one that has none."""
    if config.get("peft_type") == "BOTTLENECK":
        return config.get("form")
    is_lora = config.get("peft_type") == "LORA" and not config.get("use_dora")
    return "lora" if is_lora else None


def what(method: str) -> str:
    """What a defence does, in one sentence."""
    return (DEFENCES[method].__doc__ or "").split("\n")[0]


def _as_json(seen: Seen) -> dict[str, Any]:
    def pair(share: Proportion) -> list[int]:
        return [share.hits, share.total]

    return {
        "form": seen.form,
        "attack": seen.attack,
        "data": seen.data,
        "seeds": list(seen.seeds),
        "lfr": pair(seen.lfr),
        "lfr_undefended": pair(seen.undefended),
        "lfr_floor": pair(seen.floor),
        "cacc": pair(seen.cacc),
        "cacc_undefended": pair(seen.cacc_undefended),
    }
