"""What a checkpoint keeps of the task it was trained on, to evaluate and to predict later."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from lightpeft.errors import CheckpointError
from lightpeft.run_config import Quantization, TrainingConfig
from lightpeft.tasks.kinds import CLASSIFICATION, find_kind
from lightpeft.tasks.load import load_validation
from lightpeft.tasks.registry import find_task
from lightpeft.tasks.spec import TaskData, TaskSpec, ValidationData


@dataclass(frozen=True)
class TaskRecord:
    """A task as JSON values; checkpoints of before an entry do not have it."""

    name: str
    max_length: int
    text: tuple[str, ...]
    label: str = "label"
    class_names: tuple[str, ...] = ()
    regression: bool = False
    objective: str = CLASSIFICATION
    metric: str | None = None
    own_columns: bool = False
    """Whether it is a task on the user's own columns, and none of `TASKS`."""

    data: str | None = None
    """The folder of its files."""

    held_out_of: int | None = None
    sizes: dict[str, int] | None = None
    """Examples per split of a generated task."""

    packing: bool = False
    quantization: Quantization | None = None
    """How the base was kept in training, and is when the checkpoint is used."""

    @classmethod
    def of(
        cls,
        task: TaskData,
        training: TrainingConfig,
        *,
        own_columns: bool,
        metric: str | None = None,
        data: Path | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> "TaskRecord":
        """The record of a loaded task and of how its texts became rows."""
        return cls(
            name=task.spec.name,
            max_length=training.tokens,
            text=task.spec.text,
            label=task.spec.label,
            class_names=task.class_names,
            regression=task.is_regression,
            objective=task.spec.objective,
            metric=metric,
            own_columns=own_columns,
            data=None if data is None else str(data),
            held_out_of=task.held_out_of,
            sizes=None if sizes is None else dict(sizes),
            packing=training.packing,
            quantization=training.quantization,
        )

    @classmethod
    def read(cls, record: Any, where: object) -> "TaskRecord":
        """What `as_json` wrote.

        Args:
            where: the checkpoint, for messages.

        Raises:
            CheckpointError: there is none, or a value in it is none of its kind.
        """
        if not isinstance(record, dict) or "name" not in record:
            raise CheckpointError(f"{where} does not say which task it was trained on; use load() in Python.")
        for name, is_right in _CHECKS.items():
            if name in record and not is_right(record[name]):
                raise CheckpointError(
                    f"{where} is damaged: its task has {record[name]!r:.60} for {name!r}; take another copy."
                )
        missing = [name for name in ("max_length", "text") if name not in record]
        if missing:
            raise CheckpointError(f"{where} is damaged: its task has no {missing[0]!r}; take another copy.")
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(
            **known | {"text": tuple(known["text"]), "class_names": tuple(known.get("class_names", ()))}
        )

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"text": list(self.text), "class_names": list(self.class_names)}

    @property
    def spec(self) -> TaskSpec:
        """The task under the classes that the model was trained with.

        Raises:
            TaskError: this version has no such task.
        """
        if not self.own_columns:
            return find_task(self.name)
        metrics = () if self.metric is None else (self.metric,)
        spec = TaskSpec(
            self.name, self.text, self.label, metrics=metrics, main=metrics, objective=self.objective
        )
        if not find_kind(self.objective).takes_classes:
            return spec
        names = self.class_names or None
        return replace(
            spec, class_names=names, regression=self.regression, labels_are_names=names is not None
        )

    def validation(self, data: Path | None = None) -> ValidationData:
        """What the checkpoint is evaluated on.

        Args:
            data: takes the place of the recorded folder.

        Raises:
            TaskError: see `load_validation`.
        """
        folder = data if data is not None or self.data is None else Path(self.data)
        sizes = self.sizes if folder is None else None
        return load_validation(self.spec, folder, sizes=sizes, held_out_of=self.held_out_of)

    def training(self, batch_size: int | None) -> TrainingConfig:
        """How its texts became rows, in batches of `batch_size` or what its kind of task suggests."""
        size = find_kind(self.objective).batch_size if batch_size is None else batch_size
        return TrainingConfig(max_length=self.max_length, packing=self.packing, batch_size=size)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _or_none(check: Any) -> Any:
    return lambda value: value is None or check(value)


_CHECKS = {
    "name": _is_text,
    "max_length": _is_count,
    "text": _is_texts,
    "label": _is_text,
    "class_names": _is_texts,
    "regression": _is_flag,
    "objective": _is_text,
    "metric": _or_none(_is_text),
    "own_columns": _is_flag,
    "data": _or_none(_is_text),
    "held_out_of": _or_none(_is_count),
    "sizes": _or_none(_is_sizes),
    "packing": _is_flag,
    "quantization": _or_none(lambda value: value in get_args(Quantization)),
}
