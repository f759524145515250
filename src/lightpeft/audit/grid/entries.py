"""The named entries of a grid: a data set, an attack, a defence."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightpeft.audit.choices import HeldOutFrom, OptimizerName, PoisonedBatches
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.audit.policies.options import PolicyOptions
from lightpeft.run_config import TrainingConfig

if TYPE_CHECKING:
    from lightpeft.audit.rows import AuditTask
    from lightpeft.audit.training import AttackOptions


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

    def load(self, root: Path = Path()) -> "AuditTask":
        """Load and check the data.

        Args:
            root: folder that relative paths start from.

        Raises:
            TaskError: the data cannot be used.
            AuditError: no classes, or too few rows.
        """
        from lightpeft.audit.rows import AuditTask
        from lightpeft.tasks import custom_task, load_task

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

    trigger: TriggerRecipe | None = None
    """Trigger, target and poisoned rows, by default words for class 1; the numbers of triggers come from the
    tasks."""

    optimizer: OptimizerName = "adamw"
    """See AttackOptions."""

    poisoned_batches: PoisonedBatches = "mixture"
    """See AttackOptions."""

    learning_rate: float | None = None
    """In place of the attacker's rate, for this attack."""

    @property
    def recipe(self) -> TriggerRecipe:
        """The trigger.

        `trigger` has no recipe as its default: a form given in a file would be merged with the pieces of
        another form.
        """
        return self.trigger or TriggerRecipe(target=1)

    def options(self, training: TrainingConfig) -> "AttackOptions":
        """The attacker's training."""
        from lightpeft.audit.training import AttackOptions

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
