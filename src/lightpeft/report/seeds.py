"""What several seeds gave: numbers with their spread, and what their plans have in common."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from lightpeft.errors import ConfigError
from lightpeft.plan import Plan
from lightpeft.report.fields import build, check_count, check_number, check_text, required, take


@dataclass(frozen=True)
class OverSeeds:
    """A number over seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation (n - 1); None for one seed."""


def over_seeds(values: Sequence[float | None]) -> OverSeeds | None:
    """Mean and spread; None where there are no values, or one is missing."""
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return None
    return OverSeeds(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)


class SeedMetrics(TypedDict):
    """What one seed reached, and the seconds of its whole training; `vanilla` is None where it was not run,
    seconds where they are not known."""

    seed: int
    vanilla: float | None
    light: float
    vanilla_seconds: float | None
    light_seconds: float | None


SeedNumber = Literal["vanilla", "light", "vanilla_seconds", "light_seconds"]


def check_seed(row: Mapping[str, Any]) -> None:
    """Refuse what is no row of `per_seed`.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(row, dict) or set(row) != set(SeedMetrics.__annotations__):
        raise ConfigError(f"per_seed holds {row!r}; give {', '.join(SeedMetrics.__annotations__)}.")
    check_count("per_seed: seed", row["seed"])
    check_number("per_seed: light", row["light"])
    if row["vanilla"] is not None:
        check_number("per_seed: vanilla", row["vanilla"])
    for name in ("vanilla_seconds", "light_seconds"):
        if row[name] is not None:
            check_number(f"per_seed: {name}", row[name], least=0)


@dataclass(frozen=True)
class SeedCuts:
    """How many units of one kind the seeds' plans cut: each of them, and all of them the same."""

    kind: str
    total: int
    cut: tuple[int, ...]
    """By seed, in their order."""

    by_all: int
    """Units that every seed cut."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cut", tuple(self.cut))
        check_text("kind", self.kind)
        for count in (self.total, self.by_all, *self.cut):
            check_count(f"a number of {self.kind}", count)
        if not self.cut or not self.by_all <= min(self.cut) <= max(self.cut) <= self.total:
            raise ConfigError(
                f"of {self.total} {self.kind} the seeds cannot cut {list(self.cut)}, and all of them "
                f"{self.by_all}."
            )

    @property
    def by_chance(self) -> float:
        """Units that all seeds would be expected to cut if each drew its own at random."""
        return self.total * math.prod(cut / self.total for cut in self.cut) if self.total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """These numbers as JSON values."""
        return dataclasses.asdict(self) | {"cut": list(self.cut)}

    @classmethod
    def from_dict(cls, value: Any, where: str = "the cuts of the seeds") -> "SeedCuts":
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: missing or unknown key, or a value of the wrong kind.
        """
        return build(cls, take(value, where, *required(cls)), where)


def seed_cuts(plans: Sequence[Plan]) -> tuple[SeedCuts, ...]:
    """What the plans of several seeds cut, for each kind of unit: heads, neurons, PEFT modules, ranks, and
    layers where any are skipped."""
    cut = [plan.cut_by_kind() for plan in plans]
    skipping = any(found["layers"] for found in cut)
    return tuple(
        SeedCuts(
            kind,
            count.total,
            tuple(len(found[kind]) for found in cut),
            len(frozenset.intersection(*(found[kind] for found in cut))),
        )
        for kind, count in plans[0].counts._asdict().items()
        if kind != "layers" or skipping
    )
