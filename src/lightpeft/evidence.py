"""What a plan rests on: of how many steps its scores are, and how far the halves of these steps agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightpeft.errors import PlanError

LEAST_AGREEMENT = 1 / 3
"""Below this `Agreement.above_chance` a plan warns. How it was chosen: docs/method.md."""


@dataclass(frozen=True)
class Agreement:
    """How far two halves of the steps, each on its own, would cut the same units of one kind."""

    kind: str
    share: float
    """Of the units that one half would cut, those that the other would cut too."""

    chance: float
    """What this share would be if both drew as many units at random."""

    @property
    def above_chance(self) -> float:
        """1 where both cut the same, 0 where they agree as if they had drawn (Cohen's κ)."""
        return 1.0 if self.chance >= 1 else (self.share - self.chance) / (1 - self.chance)

    def describe(self) -> str:
        """A few words."""
        return f"{self.share:.0%} of the {self.kind} that go (by chance {self.chance:.0%})"


@dataclass(frozen=True)
class Evidence:
    """What a plan rests on."""

    scored_steps: int
    """Estimation steps that the scores are of, without those that overflowed."""

    agreements: tuple[Agreement, ...] = ()
    """Of the even and the odd of these steps, for each kind of unit that goes by what was measured in them;
    none where there was only one step."""

    def describe(self) -> str:
        """A sentence without its full stop."""
        steps = "1 step" if self.scored_steps == 1 else f"{self.scored_steps} steps"
        if not self.agreements:
            return f"scores of {steps}"
        return f"scores of {steps}, whose even and odd ones agree on {_listed(self.agreements)}"

    def weakness(self) -> str | None:
        """Why another seed would give another plan, in sentences; None where nothing speaks for that."""
        weak = tuple(one for one in self.agreements if one.above_chance < LEAST_AGREEMENT)
        if self.scored_steps == 1:
            found = "rest on a single step"
        elif weak:
            found = f"are of {self.scored_steps} steps, whose even and odd ones agree on only {_listed(weak)}"
        else:
            return None
        return (
            f"weak evidence: the scores {found}. Another seed would cut other units. Train longer, or raise "
            "estimation.steps or the batch size."
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Evidence":
        """Read what `dataclasses.asdict` gave, through JSON or not.

        Raises:
            PlanError: something else.
        """
        try:
            found = cls(value["scored_steps"], tuple(Agreement(**one) for one in value["agreements"]))
        except (KeyError, TypeError) as error:
            raise PlanError(f"malformed: what the plan rests on is {value!r} ({error!r}).") from error
        shares = [share for one in found.agreements for share in (one.share, one.chance)]
        if (
            len(value) != 2
            or type(found.scored_steps) is not int
            or found.scored_steps < 0
            or not all(type(share) in (int, float) and 0 <= share <= 1 for share in shares)
            or not all(type(one.kind) is str for one in found.agreements)
        ):
            raise PlanError(f"malformed: what the plan rests on is {value!r}.")
        return found


def _listed(agreements: tuple[Agreement, ...]) -> str:
    return ", ".join(agreement.describe() for agreement in agreements)
