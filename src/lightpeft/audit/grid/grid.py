"""What an audit measures, as a configuration: tasks, attacks, forms, defences, seeds, and both trainings."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast, get_args

from lightpeft.audit.choices import CLEAN, NO_DEFENCE, HeldOutFrom
from lightpeft.audit.grid.entries import GridAttack, GridDefence, GridTask
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.config import check_at_least, check_choice
from lightpeft.errors import ConfigError
from lightpeft.run_config import BottleneckOptions, LoraOptions, PeftForm, PeftOptions, TrainingConfig

if TYPE_CHECKING:
    from lightpeft.audit.defences import Defence
    from lightpeft.audit.grid.cell import CellKey


@dataclass(frozen=True)
class Grid:
    """An audit. Every combination is one cell; those without a meaning are refused.

    Raises:
        ConfigError: unknown names, or combinations without a meaning.
    """

    model: str
    """Folder or hub name of the clean base."""

    tasks: dict[str, GridTask]
    """Data sets by names of your own."""

    attacks: dict[str, GridAttack]
    """Attacks by names of your own; `clean`, the floor, is measured beside them."""

    pairs: list[list[str]]
    """[attacker's task, user's task]; twice the same is no domain shift."""

    scenarios: list[str] = field(default_factory=lambda: ["module_continued"])
    """`module_continued` (the paper's), `module_as_is`, `poisoned_base`, `poisoned_data`."""

    forms: list[PeftForm] = field(default_factory=lambda: ["sequential", "parallel"])
    """Forms of PEFT."""

    defences: dict[str, GridDefence] = field(default_factory=lambda: {NO_DEFENCE: GridDefence(NO_DEFENCE)})
    """Defences by names of your own. `none` is the user without any; `light_cutting` the light user."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of trainings and triggers."""

    attacker: TrainingConfig = field(default_factory=TrainingConfig)
    """The attacker's training."""

    clean: TrainingConfig | None = None
    """Training of the clean modules and bases, by default the attacker's."""

    from_clean: bool = False
    """Attackers go on from the clean module or base of the same seed, in place of a new one."""

    user: TrainingConfig = field(default_factory=TrainingConfig)
    """The user's training."""

    form_rates: dict[str, float] = field(default_factory=dict)
    """Learning rates of both trainings by form, in place of those of `attacker` and `user`."""

    lora: LoraOptions = field(default_factory=LoraOptions)
    """For form lora."""

    bottleneck: BottleneckOptions = field(default_factory=BottleneckOptions)
    """For forms sequential and parallel."""

    points: int = 3
    """Moments of the user's training at which CACC and LFR are measured for the retention curve."""

    analyses: bool = False
    """Also measure [CLS] similarity along the user's training, and LFR without each layer's modules."""

    def __post_init__(self) -> None:
        from lightpeft.audit.grid.scenarios import SCENARIOS
        from lightpeft.audit.training import check_user_training

        check_at_least("points", self.points, 1)
        for name, allowed in (("scenarios", tuple(SCENARIOS)), ("forms", get_args(PeftForm))):
            for value in getattr(self, name):
                check_choice(name, value, allowed)
        for name in ("tasks", "attacks", "defences", "pairs", "seeds", "forms", "scenarios"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty, so there is nothing to measure; give at least one.")
        self._check_pairs()
        self._check_defences()
        if CLEAN in self.attacks:
            raise ConfigError(
                f"an attack is called {CLEAN!r}, as the floor is; the floor is always measured."
            )
        for task in self.tasks.values():
            check_choice("held_out_from", task.held_out_from, get_args(HeldOutFrom))
        self._check_forms()
        for attack in self.attacks.values():
            attack.options(self.attacker)
        for side in (self.user, self.attacker if self.clean is None else self.clean):
            check_user_training(side)

    def _check_pairs(self) -> None:
        for pair in self.pairs:
            if len(pair) != 2 or not set(pair) <= self.tasks.keys():
                raise ConfigError(
                    f"pairs has {pair!r}; give two of the tasks {sorted(self.tasks)}, the attacker's first."
                )

    def _check_defences(self) -> None:
        from lightpeft.audit.defences import DEFENCES, make_defence
        from lightpeft.audit.grid.scenarios import SCENARIOS

        for name, row in self.defences.items():
            make_defence(row.method, row.options)
            if name == NO_DEFENCE and row.method != NO_DEFENCE:
                raise ConfigError(
                    f"the defence {NO_DEFENCE!r} has the method {row.method!r}; the floor, clean modules, is "
                    "measured under that name. Call it otherwise."
                )
            kind = DEFENCES[row.method].kind
            untrained = [scenario for scenario in self.scenarios if not SCENARIOS[scenario].trains]
            if untrained and kind != "inputs" and row.method != NO_DEFENCE:
                raise ConfigError(
                    f"defence {name!r} trains the module, and in the scenario {untrained[0]} nobody does; "
                    "measure it with module_continued."
                )

    def _check_forms(self) -> None:
        for form in self.form_rates:
            check_choice("form_rates", form, get_args(PeftForm))
        idle = {"form_rates": bool(self.form_rates.keys() - {*self.forms})}
        idle["lora"] = self.lora != LoraOptions() and "lora" not in self.forms
        idle["bottleneck"] = self.bottleneck != BottleneckOptions() and {*self.forms} == {"lora"}
        for name, is_idle in idle.items():
            if is_idle:
                raise ConfigError(f"{name} has options of forms that are not in forms {list(self.forms)}.")

    def keys(self) -> "Iterator[CellKey]":
        """All cells, seed by seed, so that a part is whole early. Clean modules are not defended."""
        from lightpeft.audit.grid.cell import CellKey

        attacks = [(CLEAN, NO_DEFENCE), *itertools.product(self.attacks, self.defences)]
        for seed, scenario, pair, form, (attack, defence) in itertools.product(
            self.seeds, self.scenarios, self.pairs, self.forms, attacks
        ):
            yield CellKey(scenario, pair[0], pair[1], attack, form, defence, seed)

    def recipe(self, attack: str, attacker_task: str, user_task: str) -> TriggerRecipe:
        """The trigger recipe of an attack, with the tasks' numbers of triggers."""
        return dataclasses.replace(
            self.attacks[attack].recipe,
            train_count=self.tasks[attacker_task].triggers,
            test_count=self.tasks[user_task].triggers,
        )

    def defence(self, name: str) -> "Defence":
        """The defence of a name of the grid's, or of `none`."""
        from lightpeft.audit.defences import make_defence

        row = self.defences.get(name, GridDefence(NO_DEFENCE))
        return make_defence(row.method, row.options)

    def peft(self, form: str) -> PeftOptions:
        """The module of a form, new."""
        return PeftOptions(
            cast(PeftForm, form),
            self.lora if form == "lora" else LoraOptions(),
            self.bottleneck if form != "lora" else BottleneckOptions(),
        )

    def training(self, side: TrainingConfig, form: str, seed: int) -> TrainingConfig:
        """The training of a side, with the rate of the form and a seed."""
        rate = self.form_rates.get(form, side.learning_rate)
        return dataclasses.replace(side, learning_rate=rate, seed=seed)


def as_json(value: object) -> Any:
    """Configurations as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    return [as_json(entry) for entry in value] if isinstance(value, list | tuple) else value
