"""What a task is: a frozen description of columns, classes, metrics and where the data is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from lightpeft.tasks.errors import TaskOptionError
from lightpeft.tasks.kinds import CLASSIFICATION, find_kind
from lightpeft.tasks.synthetic.generation import Generator


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face hub, as ``datasets.load_dataset`` takes it."""

    path: str
    config: str
    revision: str | None = None
    """Of data sets that were published as a script: the hub's own copy as parquet."""


@dataclass(frozen=True)
class GeneratedSource:
    """Text from a generator of our own, with the number of examples a split has by default."""

    generate: Generator
    train: int = 3000
    validation: int = 1000


@dataclass(frozen=True)
class Rewrite:
    """How a row of the data becomes rows of the task, where they are not the same."""

    columns: tuple[str, ...]
    """Of the data, which `make` is given by name."""

    make: Callable[..., list[dict[str, Any]]]


@dataclass(frozen=True)
class TaskSpec:
    """A task: which columns hold what, which classes there are, what it is measured by.

    Attributes:
        name: the name users type, such as ``glue/sst2``.
        text: the text columns, as many as the kind of task takes; of a language modelling task with two, the
            prompt and the completion, and only the completion is learned.
        objective: what is learned, a name from ``KINDS``; language modelling (``causal-lm``) has no labels.
        label: the label column.
        class_names: by class id; None means read from the training labels.
        regression: None means decided by the labels (floats are regression).
        metrics: names of metrics of its kind; empty means the usual ones.
        main: the metrics whose mean is the one number to compare; empty means all of ``metrics``.
        validation_splits: names of the split to validate on, the first that exists is taken.
        labels_are_names: with class names, the labels in the data are these names and never class ids: a
            trained model's 1 is the class that was written as 1 when it was trained.
        source: where the data comes from without ``data=``; None means only from files.
        rewrite: what makes ``text`` and ``label`` of other columns.
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
    objective: str = CLASSIFICATION
    labels_are_names: bool = False
    rewrite: Rewrite | None = None

    def __post_init__(self) -> None:
        kind = find_kind(self.objective)
        kind.check(self)
        names = (*self.text, self.label) if kind.has_labels else self.text
        if len(set(names)) != len(names):
            raise TaskOptionError(f"task {self.name!r} uses one column twice: {names}")


@dataclass(frozen=True)
class TaskData:
    """The loaded splits of a task, checked, under one set of column names.

    Each split has the columns that its kind of task (``spec.objective``) reads: ``text``, ``text_pair`` (two
    texts only) and, but for language modelling, ``label``: an int class id that indexes ``class_names``
    (of token classification one per word), or a float for regression. ``test`` is None where there is none
    with labels. ``spec`` is complete: class names and metrics are filled in.
    """

    spec: TaskSpec
    train: Dataset
    validation: Dataset
    test: Dataset | None = None
    held_out_of: int | None = None
    """Rows of the training file, where ``validation`` was taken out of them."""

    @property
    def is_regression(self) -> bool:
        """Whether labels are floats."""
        return bool(self.spec.regression)

    @property
    def has_classes(self) -> bool:
        """Whether every text has one class."""
        return self.spec.objective == CLASSIFICATION and not self.is_regression

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


@dataclass(frozen=True)
class ValidationData:
    """What a trained model is evaluated on: a resolved task, and its validation split as in ``TaskData``."""

    spec: TaskSpec
    validation: Dataset


DataPaths = str | Path | Mapping[str, str | Path]
"""A folder with one file a split, or a file for each split name."""
