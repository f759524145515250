"""What an audit measures, as a configuration: tasks, attacks, forms, defences, seeds, and both trainings."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from lightpeft.audit.cell import CLEAN, NO_DEFENCE, CellKey, Scenario
from lightpeft.audit.defences import DEFENCES, Defence, make_defence
from lightpeft.audit.policy_options import PolicyOptions
from lightpeft.audit.recipe import TriggerRecipe
from lightpeft.audit.rows import AuditTask, HeldOutFrom
from lightpeft.audit.training import AttackOptions, OptimizerName, PoisonedBatches, check_user_training
from lightpeft.config import check_at_least, check_choice
from lightpeft.errors import ConfigError
from lightpeft.run_config import BottleneckOptions, LoraOptions, PeftForm, PeftOptions, TrainingConfig
from lightpeft.tasks import custom_task, load_task


@dataclass(frozen=True)
class GridTask:
    """A data set of the grid."""

    task: str
    """A known task, or any name with `text`."""

    data: str | None = None
    """Folder with one file a split; by default the task's own source."""

    files: dict[str, str] = field(default_factory=dict)
    """In place of `data`: the file of each split."""

    text: list[str] = field(default_factory=list)
    """Text columns of your own data."""

    label: str = "label"
    """Label column of your own data."""

    train: int | None = None
    """Training rows to draw; by default all."""

    held_out: int = 200
    """Clean rows set aside for the thresholds of defences."""

    held_out_from: HeldOutFrom = "train"
    """The split that they are taken from: where validation texts are of another kind, `validation`."""

    test: int | None = None
    """Rows of the validation split to measure on; by default all."""

    words: int | None = None
    """Keep the first so many words of every text, before triggers are put in."""

    from_end: bool = False
    """With `words`: keep the last ones, where a review says what it thinks."""

    min_words: int = 0
    """Leave out training texts with fewer words."""

    triggers: int = 1
    """Triggers per text, in training and test alike (paper: 1 for sentiment, 10 for spam)."""

    data_seed: int = 0
    """Of the rows that are drawn; the same rows for all seeds of the grid."""

    def load(self, root: Path = Path()) -> AuditTask:
        """Load and check the data.

        Args:
            root: folder that relative paths start from.

        Raises:
            TaskError: the data cannot be used.
            AuditError: no classes, or too few rows.
        """
        spec = custom_task(tuple(self.text), self.label, name=self.task) if self.text else self.task
        files = {split: root / file for split, file in self.files.items()}
        folder = None if self.data is None else root / self.data
        return AuditTask.of(
            load_task(spec, files or folder, seed=self.data_seed),
            train=self.train,
            held_out=self.held_out,
            held_out_from=self.held_out_from,
            test=self.test,
            words=self.words,
            from_end=self.from_end,
            min_words=self.min_words,
            seed=self.data_seed,
        )


@dataclass(frozen=True)
class GridAttack:
    """One attacker."""

    policy: PolicyOptions = field(default_factory=lambda: PolicyOptions("vanilla"))
    """How the clean and the poisoned gradient become one."""

    trigger: TriggerRecipe = field(default_factory=lambda: TriggerRecipe(target=1))
    """Trigger, target and poisoned rows; the numbers of triggers come from the tasks."""

    optimizer: OptimizerName = "adamw"
    """See AttackOptions."""

    poisoned_batches: PoisonedBatches = "mixture"
    """See AttackOptions."""

    learning_rate: float | None = None
    """In place of the attacker's rate, for this attack."""

    def options(self, training: TrainingConfig) -> AttackOptions:
        """The attacker's training."""
        rate = training.learning_rate if self.learning_rate is None else self.learning_rate
        return AttackOptions(
            self.policy,
            self.optimizer,
            self.poisoned_batches,
            dataclasses.replace(training, learning_rate=rate),
        )


@dataclass(frozen=True)
class GridDefence:
    """One defence with its options."""

    method: str
    """A name of `DEFENCES`."""

    options: dict[str, Any] = field(default_factory=dict)
    """Its options; by default its defaults."""


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

    scenarios: list[Scenario] = field(default_factory=lambda: ["module_continued"])
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
        check_at_least("points", self.points, 1)
        for name, allowed in (("scenarios", Scenario), ("forms", PeftForm)):
            for value in getattr(self, name):
                check_choice(name, value, get_args(allowed))
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
        for form in self.form_rates:
            check_choice("form_rates", form, get_args(PeftForm))
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
        for name, row in self.defences.items():
            make_defence(row.method, row.options)
            if name == NO_DEFENCE and row.method != NO_DEFENCE:
                raise ConfigError(
                    f"the defence {NO_DEFENCE!r} has the method {row.method!r}; the floor, clean modules, is "
                    "measured under that name. Call it otherwise."
                )
            kind = DEFENCES[row.method].kind
            if "module_as_is" in self.scenarios and kind != "inputs" and row.method != NO_DEFENCE:
                raise ConfigError(
                    f"defence {name!r} trains the module, and in the scenario module_as_is nobody does; "
                    "measure it with module_continued."
                )

    def keys(self) -> Iterator[CellKey]:
        """All cells, seed by seed, so that a part is whole early. Clean modules are not defended."""
        attacks = [(CLEAN, NO_DEFENCE), *itertools.product(self.attacks, self.defences)]
        for seed, scenario, pair, form, (attack, defence) in itertools.product(
            self.seeds, self.scenarios, self.pairs, self.forms, attacks
        ):
            yield CellKey(scenario, pair[0], pair[1], attack, form, defence, seed)

    def recipe(self, attack: str, attacker_task: str, user_task: str) -> TriggerRecipe:
        """The trigger recipe of an attack, with the tasks' numbers of triggers."""
        return dataclasses.replace(
            self.attacks[attack].trigger,
            train_count=self.tasks[attacker_task].triggers,
            test_count=self.tasks[user_task].triggers,
        )

    def defence(self, name: str) -> Defence:
        """The defence of a name of the grid's, or of `none`."""
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
