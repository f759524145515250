"""Defences: what a user can do about a received PEFT module that may have a backdoor."""

from lightpeft.audit.defences.defence import REJECTED, Defence, Guard, Received, predict
from lightpeft.audit.defences.table import DEFENCES, make_defence

__all__ = ["DEFENCES", "REJECTED", "Defence", "Guard", "Received", "make_defence", "predict"]
