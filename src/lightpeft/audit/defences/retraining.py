"""Defences that change only how the user trains, or what: the plain training, a fresh module, more of it."""

import dataclasses
import math
from dataclasses import dataclass

from peft import PeftModel

from lightpeft.audit.defences.defence import Defence, Received
from lightpeft.config import check_number
from lightpeft.errors import ConfigError


@dataclass(frozen=True)
class NoDefence(Defence, name="none", kind="training"):
    """The user's plain training of the received module."""


@dataclass(frozen=True)
class Discard(Defence, name="discard", kind="training"):
    """Throw the received module away and train a fresh one: what every other defence is measured against."""

    def train(self, received: Received) -> PeftModel:
        """A fresh module, trained on the user's rows."""
        return trained_afresh(received)


@dataclass(frozen=True)
class Longer(Defence, name="longer", kind="training", time="3 trainings"):
    """The user's training, longer. The schedule stretches with it, warm-up steps stay as many."""

    factor: float = 3.0
    """On `epochs`, or where the user gave them on `max_steps`, rounded up; above 1."""

    def __post_init__(self) -> None:
        _check_factor(self.name, self.factor)

    def train(self, received: Received) -> PeftModel:
        """The received module, trained for longer."""
        plan = received.training
        if plan.max_steps is not None:
            plan = dataclasses.replace(plan, max_steps=math.ceil(self.factor * plan.max_steps))
        else:
            plan = dataclasses.replace(plan, epochs=self.factor * plan.epochs)
        return received.fit(received.model, training=plan)


@dataclass(frozen=True)
class Hotter(Defence, name="hotter", kind="training"):
    """The user's training at a higher learning rate."""

    factor: float = 3.0
    """On the peak learning rate; above 1."""

    def __post_init__(self) -> None:
        _check_factor(self.name, self.factor)

    def train(self, received: Received) -> PeftModel:
        """The received module, trained at the higher rate."""
        rate = self.factor * received.training.learning_rate
        plan = dataclasses.replace(received.training, learning_rate=rate)
        return received.fit(received.model, training=plan)


def trained_afresh(received: Received) -> PeftModel:
    """A fresh module after the user's training, which nobody watches: the curve is the received module's."""
    return dataclasses.replace(received, watch=None).fit(received.fresh(received.seed))


def _check_factor(name: str, factor: float) -> None:
    check_number(f"{name}.factor", factor)
    if factor <= 1:
        raise ConfigError(f"{name}.factor is {factor!r}; give a number above 1.")
