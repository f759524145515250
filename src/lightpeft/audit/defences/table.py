"""The table of defences, and how one is made from a name and options."""

import dataclasses
from collections.abc import Callable, Mapping

from lightpeft.audit.defences.defence import Defence
from lightpeft.audit.defences.disagreement_pruning import DisagreementPruning
from lightpeft.audit.defences.fine_mixing import FineMixing
from lightpeft.audit.defences.fine_pruning import FinePruning
from lightpeft.audit.defences.light_cutting import LightCutting
from lightpeft.audit.defences.onion import Onion
from lightpeft.audit.defences.psim import Psim
from lightpeft.audit.defences.rap import Rap
from lightpeft.audit.defences.resets import ResetHead, ResetLayers
from lightpeft.audit.defences.retraining import Discard, Hotter, Longer, NoDefence
from lightpeft.audit.defences.strip import Strip
from lightpeft.errors import ConfigError, did_you_mean

_ROWS: tuple[type[Defence], ...] = (
    NoDefence,
    Discard,
    Longer,
    Hotter,
    ResetHead,
    ResetLayers,
    FinePruning,
    DisagreementPruning,
    FineMixing,
    LightCutting,
    Onion,
    Strip,
    Rap,
    Psim,
)
DEFENCES: dict[str, type[Defence]] = {row.name: row for row in _ROWS}
"""By name. A new defence is a class, and a row above."""


def make_defence(name: str, options: Mapping[str, object] | None = None) -> Defence:
    """A defence with its options, by default those of its class.

    Raises:
        ConfigError: no defence of this name, or options that it does not read or that are out of range.
    """
    if name not in DEFENCES:
        raise ConfigError(
            f"no defence is called {name!r}.{did_you_mean(name, DEFENCES)} Choose one of "
            f"{', '.join(DEFENCES)}."
        )
    make: Callable[..., Defence] = DEFENCES[name]
    known = option_names(name)
    for option in options or {}:
        if option not in known:
            raise ConfigError(
                f"defence {name!r} does not read {option!r}.{did_you_mean(option, known)} It reads "
                f"{', '.join(known) or 'no options'}."
            )
    return make(**(options or {}))


def option_names(name: str) -> list[str]:
    """The options of a defence, in their order."""
    defence = DEFENCES[name]
    return [field.name for field in dataclasses.fields(defence)] if dataclasses.is_dataclass(defence) else []
