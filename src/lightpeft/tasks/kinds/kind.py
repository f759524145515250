"""What a kind of task says about itself, from the columns of a file to the answers of `predict`."""

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from peft import TaskType
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from lightpeft.errors import ConfigError, did_you_mean, listed
from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.columns import TEXTS, Columns, column
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.files import Table
from lightpeft.tasks.labels import is_hidden
from lightpeft.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Collator = Callable[[list[dict[str, Any]]], Mapping[str, Any]]
Metric = Callable[[Any, Any], float]
"""(labels, predictions), as `TaskKind.scored` gives them -> a number."""


@dataclass(frozen=True)
class Usual:
    """What tasks of a kind are measured by unless they say otherwise."""

    metrics: tuple[str, ...]
    main: tuple[str, ...]
    """Those whose mean is the one number to compare."""


@dataclass(frozen=True)
class Evaluated:
    """What a model made of a split."""

    outputs: Array
    """Of all rows of the features what `kept` kept; where rows differ in length padded with -100."""

    labels: Any
    """Of all rows the features' labels (of several columns a tuple), padded alike."""

    split: Dataset | None = None
    """The rows themselves, in the order of outputs where the kind is `in_order`."""

    features: Dataset | None = None
    """What `encode` made of them."""

    tokenizer: PreTrainedTokenizerBase | None = None
    """What outputs are read with where they are tokens."""


class TaskKind(ABC):
    """One kind of task.

    A split has the columns `text`, mostly, and `label`; its features are what the model takes.
    """

    name: ClassVar[str]
    """Of `KINDS`, the objective."""

    auto_class: ClassVar[Any]
    """Of transformers, which loads the base with the head that is needed."""

    peft_task: ClassVar[TaskType]
    metrics: ClassVar[Mapping[str, Metric]]
    texts: ClassVar[tuple[int, ...]] = (1, 2)
    """How many text columns a task may have."""

    own_text: ClassVar[tuple[str, ...]] = ()
    """The text columns of a user's own files where none are named; empty: they have to be."""

    has_labels: ClassVar[bool] = True
    """Whether there is a label column."""

    takes_classes: ClassVar[bool] = True
    """Whether labels are classes, or numbers, so that a task says which."""

    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    """The columns of the features that are labels to the model."""

    in_order: ClassVar[bool] = False
    """Whether rows are scored by what is in the split, and so must be evaluated in its order."""

    only_decoders: ClassVar[bool] = False
    """Whether only models that see a text from one side can learn it."""

    for_decoders: ClassVar[str | None] = None
    """The kind that decoders, which have no head for this one, take in its place."""

    packs: ClassVar[bool] = False
    """Whether texts can be joined into rows of equal length."""

    writes: ClassVar[bool] = False
    """Whether `predict` continues texts, instead of saying something about them."""

    writes_to_be_scored: ClassVar[bool] = False
    """Whether `outputs` are what the model writes, which takes more than a forward pass."""

    batch_size: ClassVar[int] = 128
    """Rows at once when a trained model is used, unless the user says otherwise."""

    evaluation_batches: ClassVar[int] = 4
    """Training batches in one evaluation batch: no activations are kept, but logits may be large."""

    def check(self, spec: TaskSpec) -> None:
        """Refuse a description that no data can fit.

        Raises:
            TaskError: says why.
        """
        self.check_texts(spec)
        if not self.takes_classes and (spec.regression is not None or spec.class_names is not None):
            raise TaskOptionError(f"task {spec.name!r} is {self.name} and has neither classes nor numbers")

    def check_texts(self, spec: TaskSpec) -> None:
        """Refuse a number of text columns that the kind does not take.

        Raises:
            TaskError: says how many it takes.
        """
        if isinstance(spec.text, str) or len(spec.text) not in self.texts:
            wanted = _COUNTS[self.texts]
            raise TaskOptionError(
                f"task {spec.name!r}: text must be a tuple of {wanted}; found {spec.text!r}"
            )

    @abstractmethod
    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        """The columns of a split that is trained or validated on, checked, under the names of a split.

        Raises:
            TaskError: a missing column, no rows, or a value that cannot be used; names the row.
        """

    def test_columns(self, spec: TaskSpec, table: Table) -> Columns | None:
        """The same of a test split; None (and a log line) if its labels are hidden or absent."""
        if self.has_labels and (spec.label not in table.names or is_hidden(column(table, spec.label))):
            logger.info("%s has no labels and is left out", table.where)
            return None
        return self.columns(spec, table)

    def resolve(
        self, spec: TaskSpec, splits: Mapping[str, Columns]
    ) -> tuple[TaskSpec, Mapping[str, Columns]]:
        """Fill in what the training labels say about the task, and turn all labels into what is learned.

        Raises:
            TaskError: labels of mixed kinds, unknown classes, nothing to tell apart.
        """
        return spec, splits

    def known(self, spec: TaskSpec, columns: Columns) -> Columns:
        """The labels of a validation split, of a task that was resolved in training.

        Raises:
            TaskError: names the first row with a label that the task does not have.
        """
        return columns

    def check_training(self, spec: TaskSpec, columns: Columns) -> None:  # noqa: B027 (most need none)
        """Refuse training rows, all or some, that nothing can be learned from.

        Raises:
            TaskError: says why.
        """

    def types(self, spec: TaskSpec) -> dict[str, Any]:
        """The types of the columns of a split, as `datasets.Features` takes them; others are strings."""
        return {}

    def head(self, spec: TaskSpec) -> dict[str, Any] | None:
        """Options of the model's new head for `from_pretrained`; None where it needs no new head."""
        return {}

    @abstractmethod
    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        """A split as the model takes it, unpadded; `labels` too, where the split has labels.

        Raises:
            TaskError: the length leaves no room, or nothing is left to learn from.
        """

    def encode_to_judge(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig
    ) -> Dataset:
        """A split as the model takes it to say something about it, where that is not as it learns from it.

        Raises:
            TaskError: see `encode`.
        """
        return self.encode(split, tokenizer, training)

    def features(
        self,
        split: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        training: TrainingConfig,
        *,
        judged: bool = False,
    ) -> Dataset:
        """`encode`, or with `judged` `encode_to_judge`, of options that fit.

        Raises:
            ConfigError: packing, where every text is learned by itself.
            TaskError: see `encode`.
        """
        if training.packing and not self.packs:
            raise ConfigError(
                f"training.packing joins texts, but {self.name} learns something of each; leave it out."
            )
        encode = self.encode_to_judge if judged else self.encode
        return encode(split, tokenizer, training)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Makes one padded batch of features."""
        collator: Collator = DataCollatorWithPadding(tokenizer)
        return collator

    def logits(self, outputs: Any) -> Tensor | tuple[Tensor, ...]:
        """What counts of a model's outputs."""
        logits: Tensor = outputs.logits
        return logits

    def kept(self, logits: Tensor | tuple[Tensor, ...], labels: Any) -> Tensor:
        """What is kept of a batch until it is scored: the Trainer's `preprocess_logits_for_metrics`."""
        return logits[0] if isinstance(logits, tuple) else logits

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
        """The tokens of a line of a text file that is to be continued; of kinds that write."""
        raise NotImplementedError(f"{self.name} writes no text")

    @abstractmethod
    def usual(self, spec: TaskSpec) -> Usual:
        """The metrics of a task that names none."""

    def check_metric(self, spec: TaskSpec, name: str) -> None:
        """Refuse a metric that the task cannot be measured by.

        Raises:
            TaskError: it is unknown, or does not fit the labels.
        """
        if name not in self.metrics:
            raise TaskOptionError(
                f"task {spec.name!r}: unknown metric {name!r}.{did_you_mean(name, self.metrics)} Known for "
                f"{self.name}: {listed(self.metrics)}"
            )

    def outputs(self, model: Any, inputs: Mapping[str, Tensor], labels: Any) -> Tensor:
        """What `Evaluated.outputs` has of a batch, by a model in eval mode; labels are on its device."""
        return self.kept(self.logits(model(**inputs)), labels)

    @abstractmethod
    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[Any, Any]:
        """What the metrics compare: labels and predictions."""

    def score(
        self,
        spec: TaskSpec,
        outputs: Any,
        labels: Any,
        split: Dataset | None = None,
        features: Dataset | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> dict[str, float]:
        """Every metric of a resolved task by name, and `main`, the mean of its main ones; see `Evaluated`.

        Raises:
            TaskError: no rows, or outputs that are NaN or infinite.
        """
        compared = self.scored(spec, Evaluated(finite(outputs), labels, split, features, tokenizer))
        return self._scores(spec, compared, (*spec.metrics, *spec.main))

    def _scores(self, spec: TaskSpec, compared: tuple[Any, Any], names: Sequence[str]) -> dict[str, float]:
        """These metrics, and `main`."""
        scores = {name: self.metrics[name](*compared) for name in dict.fromkeys(names)}
        return scores | {"main": sum(scores[name] for name in spec.main) / len(spec.main)}

    def mains_without(self, spec: TaskSpec, evaluated: Evaluated, parts: int) -> list[float]:
        """`main` of a resolved task as often as there are parts, each time without one part of the rows.

        By how much they differ says how exactly so many rows tell what is measured (the jackknife). Part 0
        has row 0, part 1 row 1, and so on round and round: the same for every model on these rows.

        Raises:
            TaskError: see `score`.
        """
        compared = self.scored(spec, dataclasses.replace(evaluated, outputs=finite(evaluated.outputs)))
        part_of = np.arange(self.count(compared)) % parts
        mains = []
        for part in range(min(parts, len(part_of))):
            rest = self.rows_of(compared, np.flatnonzero(part_of != part))
            mains.append(self._scores(spec, rest, spec.main)["main"])
        return mains

    def count(self, compared: tuple[Any, Any]) -> int:
        """Of how many rows `scored` says something."""
        return len(compared[1])

    def rows_of(self, compared: tuple[Any, Any], rows: Array) -> tuple[Any, Any]:
        """What `scored` gives, of these of its rows."""
        labels, predictions = (
            values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
            for values in compared
        )
        return labels, predictions

    def examples(self, spec: TaskSpec, lines: Sequence[str], where: str) -> Dataset:
        """The lines of a text file as a split without labels; two texts of a line have a tab between.

        Args:
            where: the file, for messages.

        Raises:
            TaskError: names the line that has another number of texts.
        """
        wanted = len(spec.text)
        rows = []
        for number, line in enumerate(lines, start=1):
            texts = line.split("\t") if wanted > 1 else [line]
            if not line.strip():
                texts = [""] * wanted
            if len(texts) != wanted:
                raise TaskError(
                    f"{where}, line {number}: found {len(texts)} texts, the task has {wanted}; put a tab "
                    "between them"
                )
            rows.append(texts)
        columns = {name: [row[place] for row in rows] for place, name in enumerate(TEXTS[:wanted])}
        return Dataset.from_dict(columns)

    def answers(self, spec: TaskSpec, evaluated: Evaluated) -> list[dict[str, Any]]:
        """What `predict` says about each row of `examples`."""
        raise NotImplementedError(f"{self.name} has nothing to say about a text; it writes one")


_COUNTS = {
    (1,): "one column name",
    (2,): "two column names",
    (1, 2): "one or two column names",
}


def class_names_options(names: Sequence[str]) -> dict[str, Any]:
    """The names of a head's classes, by id and back, for `from_pretrained`."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def finite(outputs: Any) -> Array:
    """The model's outputs (of several the first), if they can be scored.

    Raises:
        TaskError: no rows, or some that are NaN or infinite.
    """
    found = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
    if not len(found):
        raise TaskError("no predictions to score: the evaluated split is empty")
    broken = int((~np.isfinite(found)).reshape(len(found), -1).any(axis=1).sum())
    if broken:
        raise TaskError(
            f"{broken} of {len(found)} predictions are NaN or infinite; the training diverged: "
            "lower the learning rate, or where it was float16 take bfloat16"
        )
    return found
