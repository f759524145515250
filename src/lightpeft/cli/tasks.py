"""The task options that several verbs share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightpeft.errors import ConfigError
from lightpeft.run_config import Objective, TrainingConfig
from lightpeft.runs import OBJECTIVES
from lightpeft.tasks import (
    TaskData,
    TaskSpec,
    ValidationData,
    custom_task,
    find_task,
    load_task,
    load_validation,
    task_names,
)


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

    objective: Objective = "sequence-classification"

    def spec(self) -> str | TaskSpec:
        """The name of a known task, or a task on the user's own columns.

        Raises:
            ConfigError: own columns without own data.
        """
        if self.objective == "causal-lm" and self.label != TaskOptions.label:
            raise ConfigError(f"label {self.label!r} would have no effect with causal-lm; leave it out.")
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
        """The text columns of own data: of language modelling `text` unless others are named."""
        return self.text or (("text",) if self.objective == "causal-lm" else ())

    def load(self, seed: int = 0) -> TaskData:
        """Load and check the task."""
        return load_task(self.spec(), self.data, train_limit=self.train_limit, sizes=self.sizes, seed=seed)


def task_record(options: TaskOptions, data: TaskData, training: TrainingConfig) -> dict[str, Any]:
    """What a light checkpoint keeps of its task, as JSON values."""
    return {
        "name": data.spec.name,
        "objective": data.spec.objective,
        "data": None if options.data is None else str(options.data),
        "text": list(data.spec.text),
        "own_columns": bool(options.own_columns),
        "label": data.spec.label,
        "metric": options.metric,
        "class_names": list(data.class_names),
        "regression": data.is_regression,
        "held_out_of": data.held_out_of,
        "sizes": None if options.sizes is None else dict(options.sizes),
        "max_length": training.tokens,
        "packing": training.packing,
    }


def recorded_validation(record: Mapping[str, Any], data: Path | None) -> ValidationData:
    """What a checkpoint is evaluated on, under the classes that it was trained with.

    Args:
        data: takes the place of the recorded folder.

    Raises:
        TaskError: see ``load_validation``.
    """
    recorded = record.get("data")
    folder = data if data is not None else (None if recorded is None else Path(recorded))
    return load_validation(
        _recorded_spec(record),
        folder,
        sizes=None if folder is not None else record.get("sizes"),
        held_out_of=record.get("held_out_of"),
    )


def _recorded_spec(record: Mapping[str, Any]) -> TaskSpec:
    if not record.get("own_columns"):
        return find_task(record["name"])
    spec = custom_task(
        tuple(record["text"]),
        record["label"],
        record.get("metric"),
        name=record["name"],
        objective=recorded_objective(record),
    )
    if not spec.has_labels:
        return spec
    names = tuple(record["class_names"]) or None
    return replace(
        spec, class_names=names, regression=record["regression"], labels_are_names=names is not None
    )


def recorded_objective(record: Mapping[str, Any]) -> Objective:
    """What a checkpoint learned; records of before language modelling do not say it."""
    objective: Objective = record.get("objective", "sequence-classification")
    return objective


def recorded_training(record: Mapping[str, Any], batch_size: int | None) -> TrainingConfig:
    """How a checkpoint's texts became rows, in batches of `batch_size` or what its objective suggests."""
    return TrainingConfig(
        max_length=record["max_length"],
        packing=record.get("packing", False),
        batch_size=OBJECTIVES[recorded_objective(record)].batch_size if batch_size is None else batch_size,
    )
