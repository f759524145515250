"""Names that a configuration of the audit chooses from, known without what they name."""

from typing import Literal

HeldOutFrom = Literal["train", "validation"]
OptimizerName = Literal["adamw", "sgd"]
PoisonedBatches = Literal["mixture", "triggered_only"]

CLEAN = "clean"
"""The attack that is none: its LFR is the floor."""
NO_DEFENCE = "none"
