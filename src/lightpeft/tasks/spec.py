"""What a task is: a frozen description of columns, classes, metrics and where the data is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from lightpeft.tasks.errors import TaskError
from lightpeft.tasks.synthetic.generation import Generator


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face hub, as ``datasets.load_dataset(path, config)`` takes it."""

    path: str
    config: str


@dataclass(frozen=True)
class GeneratedSource:
    """Text from a generator of our own, with the number of examples a split has by default."""

    generate: Generator
    train: int = 3000
    validation: int = 1000


@dataclass(frozen=True)
class TaskSpec:
    """Sequence classification or regression on one or two texts.

    Attributes:
        name: the name users type, such as ``glue/sst2``.
        text: the one or two text columns.
        label: the label column.
        class_names: by class id; None means read from the training labels.
        regression: None means decided by the labels (floats are regression).
        metrics: names from ``METRICS``; empty means the usual ones for the kind of labels.
        main: the metrics whose mean is the one number to compare; empty means all of ``metrics``.
        validation_splits: names of the split to validate on, the first that exists is taken.
        source: where the data comes from without ``data=``; None means only from files.
    """

    name: str
    text: tuple[str, ...]
    label: str = "label"
    class_names: tuple[str, ...] | None = None
    regression: bool | None = None
    metrics: tuple[str, ...] = ()
    main: tuple[str, ...] = ()
    validation_splits: tuple[str, ...] = ("validation",)
    source: HubSource | GeneratedSource | None = None

    def __post_init__(self) -> None:
        if isinstance(self.text, str) or len(self.text) not in (1, 2):
            raise TaskError(
                f"task {self.name!r}: text must be a tuple of one or two column names; found {self.text!r}"
            )
        names = (*self.text, self.label)
        if len(set(names)) != len(names):
            raise TaskError(f"task {self.name!r} uses one column twice: {names}")
        if self.regression and self.class_names is not None:
            raise TaskError(f"task {self.name!r} is a regression and cannot have class names")


@dataclass(frozen=True)
class TaskData:
    """The loaded splits of a task, checked, under one set of column names.

    Each split has the columns ``text``, ``text_pair`` (two texts only) and ``label``: an int class
    id that indexes ``class_names``, or a float for regression. ``test`` is None where there is
    none with labels. ``spec`` is complete: kind, class names and metrics are filled in.
    """

    spec: TaskSpec
    train: Dataset
    validation: Dataset
    test: Dataset | None = None

    @property
    def is_regression(self) -> bool:
        """Whether labels are floats."""
        return bool(self.spec.regression)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class id; empty for regression."""
        return self.spec.class_names or ()

    @property
    def num_labels(self) -> int:
        """Outputs of the classification head: the number of classes, or 1 for regression."""
        return 1 if self.is_regression else len(self.class_names)

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by id, for the model's config; empty for regression."""
        return dict(enumerate(self.class_names))


DataPaths = str | Path | Mapping[str, str | Path]
"""A folder with one file a split, or a file for each split name."""
