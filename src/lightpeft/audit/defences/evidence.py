"""What was measured of the defences, in the settings of the committed audits: the numbers behind advice."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lightpeft.audit.metrics import Difference, Proportion, difference, over_floor
from lightpeft.files import read_json

_FILE = Path(__file__).with_name("evidence.json")
"""What `benchmarks/audit_tables.py --evidence` says of the cells in `benchmarks/results`."""
_SHARES = ("lfr", "undefended", "floor", "cacc", "cacc_undefended")


@dataclass(frozen=True)
class Seen:
    """One defence with its default options in one setting; texts of several seeds are pooled."""

    defence: str
    form: str
    """Of PEFT: lora, sequential, parallel."""
    attack: str
    """As the grid calls it: `phrase` has a sentence for its trigger, the others rare words."""
    data: str
    """Attacker's and user's."""
    seeds: tuple[int, ...]
    lfr: Proportion
    """Triggered texts of other classes that become the target, behind the defence."""
    undefended: Proportion
    """The same after the user's plain training."""
    floor: Proportion
    """The same in a module that was never poisoned."""
    cacc: Proportion
    cacc_undefended: Proportion

    @property
    def left(self) -> Difference:
        """What is left of the backdoor: LFR minus its floor."""
        return over_floor(self.lfr, self.floor)

    @property
    def cost(self) -> Difference:
        """CACC without minus CACC with the defence."""
        return difference(self.cacc_undefended, self.cacc)

    @property
    def setting(self) -> tuple[str, str, str]:
        """What was defended."""
        return self.form, self.attack, self.data


@cache
def evidence() -> tuple[Seen, ...]:
    """All that was seen."""
    return tuple(_seen(row) for row in read_json(_FILE)["seen"])


def _seen(row: dict[str, Any]) -> Seen:
    shares = {name: Proportion(*row[name]) for name in _SHARES}
    return Seen(**row | shares | {"seeds": tuple(row["seeds"])})
