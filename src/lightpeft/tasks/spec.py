"""What a task is: a frozen description of columns, classes, metrics and where the data is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from datasets import Dataset

from lightpeft.errors import listed
from lightpeft.run_config import Objective
from lightpeft.tasks.errors import TaskOptionError
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
    """A task on one or two texts: sequence classification, regression, or language modelling.

    Attributes:
        name: the name users type, such as ``glue/sst2``.
        text: the one or two text columns; of a language modelling task with two, the prompt and the
            completion, and only the completion is learned.
        objective: what is learned; language modelling (``causal-lm``) has no labels.
        label: the label column.
        class_names: by class id; None means read from the training labels.
        regression: None means decided by the labels (floats are regression).
        metrics: names from ``METRICS``; empty means the usual ones for the kind of labels.
        main: the metrics whose mean is the one number to compare; empty means all of ``metrics``.
        validation_splits: names of the split to validate on, the first that exists is taken.
        labels_are_names: with class names, the labels in the data are these names and never class ids: a
            trained model's 1 is the class that was written as 1 when it was trained.
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
    objective: Objective = "sequence-classification"
    labels_are_names: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.text, str) or len(self.text) not in (1, 2):
            raise TaskOptionError(
                f"task {self.name!r}: text must be a tuple of one or two column names; found {self.text!r}"
            )
        if self.objective not in get_args(Objective):
            raise TaskOptionError(
                f"task {self.name!r}: unknown objective {self.objective!r}; choose one of "
                f"{listed(get_args(Objective))}"
            )
        names = (*self.text, self.label) if self.has_labels else self.text
        if len(set(names)) != len(names):
            raise TaskOptionError(f"task {self.name!r} uses one column twice: {names}")
        if self.regression and self.class_names is not None:
            raise TaskOptionError(f"task {self.name!r} is a regression and cannot have class names")
        if not self.has_labels and (self.regression is not None or self.class_names is not None):
            raise TaskOptionError(
                f"task {self.name!r} is language modelling and has neither classes nor numbers"
            )

    @property
    def has_labels(self) -> bool:
        """Whether the data has a label column: language modelling learns the texts themselves."""
        return self.objective != "causal-lm"


@dataclass(frozen=True)
class TaskData:
    """The loaded splits of a task, checked, under one set of column names.

    Each split has the columns ``text``, ``text_pair`` (two texts only) and, but for language
    modelling, ``label``: an int class id that indexes ``class_names``, or a float for regression. ``test``
    is None where there is none with labels. ``spec`` is complete: kind, class names and metrics are
    filled in.
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
