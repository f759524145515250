"""What the numbers mean, in sentences that say no more than their intervals allow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightpeft.audit.choices import NO_DEFENCE
from lightpeft.audit.metrics import Difference
from lightpeft.audit.report.aggregate import by_setting
from lightpeft.audit.report.group import Group
from lightpeft.audit.report.wording import (
    afterwards,
    difference_sentence,
    direction,
    interval_text,
    percent,
    points,
)
from lightpeft.report.units import seed_names

Tone = Literal["bad", "open", "good"]
FEW_TRIGGERS_LEFT = 0.95


@dataclass(frozen=True)
class Finding:
    """One sentence or two, and how it is to be taken."""

    text: str
    tone: Tone
    """`good`: no more than that an LFR is not above its floor; `open`: cannot be said, or needs care."""


def headline(groups: Sequence[Group]) -> Finding:
    """All undefended attacks in one sentence."""
    attacks = [group for group in groups if not group.is_clean and not group.is_defended]
    held = [group for group in attacks if group.over_floor is not None]
    if not held:
        return Finding(
            "No attack of this grid was measured together with its clean floor, so nothing can be said about "
            "survival.",
            "open",
        )
    above = [group for group in held if group.verdict == "above the floor"]
    text = (
        f"Without any defence, the backdoor is still measurable in {len(above)} of {len(held)} "
        "settings (attack, form of PEFT and data): there, LFR is above that of a never-poisoned module."
    )
    if above:
        most = max(above, key=lambda group: group.over_floor.value if group.over_floor else 0)
        text += f" It is highest above its floor with {_setting(most)}: {_against_floor(most)}."
    if len(held) < len(attacks):
        text += f" {len(attacks) - len(held)} more have no floor."
    return Finding(text, "bad" if above else "good")


def findings(groups: Sequence[Group]) -> list[Finding]:
    """What each attack came to, and the cheapest defence against it."""
    found: list[Finding] = []
    for of_setting in by_setting(groups):
        if not of_setting[0].is_clean:
            found += _of_attack(of_setting)
    return found


def _of_attack(groups: Sequence[Group]) -> list[Finding]:
    plain = next((group for group in groups if not group.is_defended), None)
    defended = [group for group in groups if group.is_defended]
    if plain is None:
        text = f"{_setting(groups[0])}: not measured without a defence (`{NO_DEFENCE}`), so the price of a "
        return [Finding(text + "defence is not known, nor whether there was anything to remove.", "open")]
    found = [_survival(plain)]
    left = plain.triggers_left
    if left is not None and left.pooled.value < FEW_TRIGGERS_LEFT:
        found.append(_few_triggers(plain, left.pooled.value))
    if defended and plain.over_floor is not None:
        found.append(_defence(plain, defended))
    return found


def _survival(group: Group) -> Finding:
    when = afterwards(group.key)
    over, (above, runs) = group.over_floor, group.runs_above
    if over is None:
        return Finding(
            f"{_setting(group)}: LFR is {interval_text(group.lfr.pooled)} {when}. Its floor, the LFR "
            "of a never-poisoned module on the same triggered texts, is missing: how much of it the backdoor "
            "explains cannot be said.",
            "open",
        )
    text = f"{_setting(group)}: "
    if over.is_above:
        text += f"the backdoor was still there {when} in {above} of {runs} runs: {_against_floor(group)}."
    else:
        text += f"{when}, {_against_floor(group)}, which is {group.verdict}"
        text += f"; taken one by one, {above} of {runs} runs are above it." if above else "."
        text += " This does not show that the backdoor is gone."
    if group.seeds_without_floor:
        text += f" Not counted, for lack of a floor: {seed_names(group.seeds_without_floor)}."
    return Finding(text, "bad" if over.is_above or above else "good")


def _few_triggers(group: Group, left: float) -> Finding:
    return Finding(
        f"{_setting(group)}: only {percent(left)} of the triggered texts still have a trigger after "
        "truncation. On the others nothing can flip, so LFR understates the backdoor.",
        "open",
    )


def _defence(plain: Group, defended: Sequence[Group]) -> Finding:
    assert plain.over_floor is not None
    if not plain.over_floor.is_above:
        text = (
            f"{_setting(plain)}: there was nothing to remove that could be told from the floor, so nothing "
        )
        return Finding(text + "is said about the defences here.", "open")
    held = [group for group in defended if group.over_floor is not None]
    at_floor = [group for group in held if group.verdict != "above the floor"]
    if not held:
        text = f"{_setting(plain)}: no defence was measured together with a floor, so nothing is said about "
        return Finding(text + "them here.", "open")
    if not at_floor:
        return _no_defence(plain, held)
    best = min(at_floor, key=lambda group: math.inf if group.cost is None else group.cost.value)
    text = (
        f"{_setting(plain)}: {len(at_floor)} of {len(held)} defences have an LFR that is below the floor "
        f"or not distinguishable from it. The cheapest is {best.key.defence}: {_against_floor(best)}, "
        f"{best.verdict}, {_price(best.cost)}."
    )
    above, runs = best.runs_above
    if above:
        text += f" Taken one by one, {above} of its {runs} runs are above the floor."
    return Finding(text, "open" if above else "good")


def _no_defence(plain: Group, held: Sequence[Group]) -> Finding:
    lowest = min(held, key=lambda group: group.lfr.pooled.value)
    return Finding(
        f"{_setting(plain)}: none of {len(held)} defences brought LFR to the floor. The lowest is with "
        f"{lowest.key.defence}: {_against_floor(lowest)}, {_price(lowest.cost)}.",
        "bad",
    )


def _price(cost: Difference | None) -> str:
    """Of CACC without minus CACC with the defence."""
    if cost is None:
        return "at a cost that is not known, for lack of a cell without it"
    interval = f"cost {points(cost.low)} to {points(cost.high)} points"
    if cost.value < 0:
        return f"with {points(-cost.value).removeprefix('+')} points more of accuracy ({interval})"
    return f"at a cost of {points(cost.value).removeprefix('+')} points of accuracy ({interval})"


def _against_floor(group: Group) -> str:
    if group.floor is None or group.lfr_beside_floor is None or group.over_floor is None:
        return f"LFR {percent(group.lfr.pooled.value)}, its floor is missing"
    return (
        f"LFR {percent(group.lfr_beside_floor.pooled.value)} against a floor of "
        f"{percent(group.floor.pooled.value)}, {difference_sentence(group.over_floor)}"
    )


def _setting(group: Group) -> str:
    return f"{group.key.attack} ({group.key.form}, {direction(group.key)})"
