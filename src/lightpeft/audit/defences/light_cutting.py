"""Light-PEFT as a defence: the user's training estimates, cuts base and module, and goes on."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from peft import PeftModel

from lightpeft.audit.defences.defence import Defence, Received
from lightpeft.config import Budget, LightConfig, check_choice
from lightpeft.errors import ConfigError

BudgetName = Literal["gentle", "default", "hard"]
_PRESET = LightConfig.preset("default")


def _budget(share: float) -> Budget:
    return dataclasses.replace(_PRESET.budget, heads=share, neurons=share, modules=share, ranks=share)


BUDGETS: dict[BudgetName, Budget] = {
    "gentle": _budget(0.2),
    "default": _PRESET.budget,
    "hard": dataclasses.replace(_budget(0.6), modules=0.75),
}
"""By name: shares of heads, neurons, PEFT modules and ranks."""


@dataclass(frozen=True)
class LightCutting(
    Defence,
    name="light_cutting",
    kind="training",
    source="Light-PEFT",
    time="less than 1 training",
    unproven="measured with an earlier preset only",
):
    """The user trains by Light-PEFT, preset `default`, where nothing else is said.

    Estimation takes at most a third of the user's steps (an eighth of 80 and more), so it fits runs of two
    steps or more.
    """

    budget: BudgetName = "default"
    """How much is cut of heads, neurons, PEFT modules and of the ranks that stay: `gentle` 20 % of each,
    `default` what the preset says (1/3, 1/3, 1/2, 1/4), `hard` 60 % of each and 75 % of the modules."""

    fold_removed: bool = True
    """Whether LoRA that is cut is merged into the base, as Light-PEFT does, which may keep a backdoor, or
    dropped. Bottleneck adapters cannot be merged: always their mean output takes their place."""

    def __post_init__(self) -> None:
        check_choice("light_cutting.budget", self.budget, get_args(BudgetName))
        if not isinstance(self.fold_removed, bool):
            raise ConfigError(f"light_cutting.fold_removed is {self.fold_removed!r}; give true or false.")

    def train(self, received: Received) -> PeftModel:
        """The received module, trained and cut with its base.

        Raises:
            LightPeftError: what the light half finds wrong, before or while it cuts.
        """
        return received.fit(received.model, light=self.config)

    @property
    def config(self) -> LightConfig:
        """The configuration of the light run."""
        surgery = dataclasses.replace(_PRESET.surgery, fold_removed=self.fold_removed)
        return dataclasses.replace(_PRESET, budget=BUDGETS[self.budget], surgery=surgery)
