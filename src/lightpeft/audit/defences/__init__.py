"""Defences: what a user can do about a received PEFT module that may have a backdoor."""

from lightpeft.audit.defences.defence import Defence, Guard, Kind, Received, Screened
from lightpeft.audit.defences.fine_mixing import FineMixing
from lightpeft.audit.defences.fine_pruning import FinePruning
from lightpeft.audit.defences.light_cutting import BUDGETS, LightCutting
from lightpeft.audit.defences.onion import Onion
from lightpeft.audit.defences.psim import Psim
from lightpeft.audit.defences.rap import Rap
from lightpeft.audit.defences.resets import ResetHead, ResetLayers
from lightpeft.audit.defences.retraining import Discard, Hotter, Longer, NoDefence
from lightpeft.audit.defences.strip import Strip
from lightpeft.audit.defences.table import DEFENCES, make_defence

__all__ = [
    "BUDGETS",
    "DEFENCES",
    "Defence",
    "Discard",
    "FineMixing",
    "FinePruning",
    "Guard",
    "Hotter",
    "Kind",
    "LightCutting",
    "Longer",
    "NoDefence",
    "Onion",
    "Psim",
    "Rap",
    "Received",
    "ResetHead",
    "ResetLayers",
    "Screened",
    "Strip",
    "make_defence",
]
