"""Numbers and names of an audit for people: per cent with one decimal, points, intervals, scenarios."""

from lightpeft.audit.grid.cell import CellKey
from lightpeft.audit.grid.report.group import OverSeeds
from lightpeft.audit.grid.scenarios import SCENARIOS
from lightpeft.audit.metrics import Difference, Proportion, Spread
from lightpeft.report.units import MISSING, seed_names


def scenario_title(key: CellKey) -> str:
    """What the user received."""
    return SCENARIOS[key.scenario].title or key.scenario.replace("_", " ")


def afterwards(key: CellKey) -> str:
    """When the backdoor was looked for, as the end of a sentence."""
    return SCENARIOS[key.scenario].afterwards or f"at the end of {key.scenario.replace('_', ' ')}"


def percent(share: float) -> str:
    """`0.6523` as `65.2 %`."""
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference: `-0.0123` as `−1.2`."""
    text = f"{100 * share:+.1f}"
    return "0.0" if not float(text) else text.replace("-", "−")


def difference_text(found: Difference | None) -> str:
    """`+63.9 (+60.0 to +67.1)`, in points."""
    if found is None:
        return MISSING
    return f"{points(found.value)} ({points(found.low)} to {points(found.high)})"


def interval_text(found: Proportion) -> str:
    """`65.2 % (63.0 to 67.3)`."""
    low, high = found.interval()
    return f"{percent(found.value)} ({100 * low:.1f} to {100 * high:.1f})"


def spread_text(found: Spread) -> str:
    """`65.2 ± 1.3` in per cent; of one seed `65.2`."""
    after = "" if found.deviation is None else f" ± {100 * found.deviation:.1f}"
    return f"{100 * found.mean:.1f}{after}"


def seeds_text(found: OverSeeds | None) -> str:
    """Mean and spread over seeds, or a dash."""
    return MISSING if found is None else spread_text(found.spread)


def direction(key: CellKey) -> str:
    """Attacker's and user's task."""
    return f"{key.attacker_task} → {key.user_task}"


def block_title(key: CellKey) -> str:
    """What a table is about."""
    return f"{scenario_title(key)}: {direction(key)}"


FILTERS = {
    "percent": percent,
    "points": points,
    "size": lambda share: points(share).removeprefix("+"),
    "interval": interval_text,
    "seeds": seed_names,
    "direction": direction,
    "scenario": scenario_title,
    "afterwards": afterwards,
}
"""By name, for templates."""
