"""Training: light PEFT inside a transformers Trainer."""

from lightpeft.training.callback import LightCallback
from lightpeft.training.keeping import KeepingTrainer
from lightpeft.training.random_state import RandomState
from lightpeft.training.second_phase import (
    SecondPhaseTrainer,
    require_second_phase,
    take_values,
    trained_values,
)
from lightpeft.training.trainer import LightTrainer
from lightpeft.training.wrapper import renew

__all__ = [
    "KeepingTrainer",
    "LightCallback",
    "LightTrainer",
    "RandomState",
    "SecondPhaseTrainer",
    "renew",
    "require_second_phase",
    "take_values",
    "trained_values",
]
