"""The task options that several verbs share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightpeft.errors import ConfigError
from lightpeft.run_config import TrainingConfig
from lightpeft.tasks import TaskData, TaskRecord, TaskSpec, custom_task, find_kind, load_task, task_names


@dataclass(frozen=True)
class TaskOptions:
    """Which task, and where its data is."""

    name: str
    data: Path | None = None
    text: tuple[str, ...] = ()
    label: str = "label"
    metric: str | None = None
    train_limit: int | None = None
    sizes: Mapping[str, int] | None = None
    """Examples per split of a generated task."""

    objective: str = "sequence-classification"

    def spec(self) -> str | TaskSpec:
        """The name of a known task, or a task on the user's own columns.

        Raises:
            ConfigError: own columns without own data.
            TaskError: an objective that is no kind of task.
        """
        if not find_kind(self.objective).has_labels and self.label != TaskOptions.label:
            raise ConfigError(
                f"label {self.label!r} would have no effect with {self.objective}; leave it out."
            )
        if not self.own_columns:
            return self.name
        if self.data is None:
            raise ConfigError(
                f"--text names columns of your own files, so --data must say where they are. For a known "
                f"task leave --text out: {', '.join(task_names())}."
            )
        return custom_task(
            self.own_columns, self.label, self.metric, name=self.name, objective=self.objective
        )

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The text columns of own data: the usual ones of the kind of task unless others are named."""
        return self.text or find_kind(self.objective).own_text

    def load(self, seed: int = 0) -> TaskData:
        """Load and check the task."""
        return load_task(self.spec(), self.data, train_limit=self.train_limit, sizes=self.sizes, seed=seed)

    def record(self, task: TaskData, training: TrainingConfig) -> TaskRecord:
        """What a light checkpoint keeps of the loaded task."""
        return TaskRecord.of(
            task,
            training,
            own_columns=bool(self.own_columns),
            metric=self.metric,
            data=self.data,
            sizes=self.sizes,
        )
