"""One label for one or two texts: a class, or a number."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, Value
from peft import TaskType
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.columns import Columns, checked_texts, column
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.features import encode
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds.kind import Array, Evaluated, Metric, TaskKind, Usual, class_names_options
from lightpeft.tasks.labels import (
    check_labels,
    check_varied,
    clean_labels,
    known_labels,
    resolve_labels,
)
from lightpeft.tasks.spec import TaskSpec

RELATIVE_ROUNDING = 1e-13


def class_head(names: tuple[str, ...]) -> dict[str, Any]:
    """Options of a head for classes, by id, for `from_pretrained`."""
    return class_names_options(names) | {"problem_type": "single_label_classification"}


def _binary_f1(labels: Array, predictions: Array) -> float:
    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))


def _macro_f1(labels: Array, predictions: Array) -> float:
    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _accuracy(labels: Array, predictions: Array) -> float:
    return float(accuracy_score(labels, predictions))


def _matthews(labels: Array, predictions: Array) -> float:
    """Matthews correlation, 0.0 where it is not defined because one side is constant."""
    if len(set(labels)) == 1 or len(set(predictions)) == 1:
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def _pearson(labels: Array, predictions: Array) -> float:
    return _correlation(pearsonr, labels, predictions)


def _spearman(labels: Array, predictions: Array) -> float:
    return _correlation(spearmanr, labels, predictions)


def _correlation(measure: Callable[..., Any], labels: Array, predictions: Array) -> float:
    """The correlation, 0.0 where it is not defined because one side is constant."""
    sides = labels.astype(np.float64), predictions.astype(np.float64)
    if any(_is_constant(side) for side in sides):
        return 0.0
    return float(measure(*sides).statistic)


def _is_constant(values: Array) -> bool:
    mean = values.mean()
    return bool(np.linalg.norm(values - mean) <= RELATIVE_ROUNDING * abs(mean))


OF_CLASSES: dict[str, Metric] = {
    "accuracy": _accuracy,
    "f1": _binary_f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}
OF_NUMBERS: dict[str, Metric] = {"pearson": _pearson, "spearman": _spearman}


class SequenceClassification(TaskKind):
    """A class or a number. Metrics are fractions: accuracy and F1 from 0 to 1, correlations from -1 to 1."""

    name = "sequence-classification"
    auto_class = AutoModelForSequenceClassification
    peft_task = TaskType.SEQ_CLS
    metrics: ClassVar[Mapping[str, Metric]] = OF_CLASSES | OF_NUMBERS

    def check(self, spec: TaskSpec) -> None:
        super().check(spec)
        if spec.regression and spec.class_names is not None:
            raise TaskOptionError(f"task {spec.name!r} is a regression and cannot have class names")

    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        where = f"{table.where}, column {spec.label!r}"
        texts = checked_texts(spec.text, table)
        labels = clean_labels(
            column(table, spec.label),
            where,
            untyped=table.untyped,
            as_names=spec.class_names is not None and spec.labels_are_names,
        )
        check_labels(labels, where)
        return texts | {"label": labels}

    def resolve(
        self, spec: TaskSpec, splits: Mapping[str, Columns]
    ) -> tuple[TaskSpec, Mapping[str, Columns]]:
        spec, labels = resolve_labels(spec, {split: found["label"] for split, found in splits.items()})
        return spec, {split: found | {"label": labels[split]} for split, found in splits.items()}

    def known(self, spec: TaskSpec, columns: Columns) -> Columns:
        return columns | {"label": known_labels(spec, columns["label"], "validation")}

    def check_training(self, spec: TaskSpec, columns: Columns) -> None:
        check_varied(columns["label"], spec)

    def types(self, spec: TaskSpec) -> dict[str, Any]:
        return {"label": Value("float32" if spec.regression else "int64")}

    def head(self, spec: TaskSpec) -> dict[str, Any]:
        if spec.regression:
            return {"num_labels": 1, "problem_type": "regression"}
        return class_head(spec.class_names or ())

    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        return encode(split, tokenizer, training.tokens)

    def usual(self, spec: TaskSpec) -> Usual:
        names = ("pearson", "spearman") if _is_regression(spec) else ("accuracy", "macro_f1")
        return Usual(names, names if spec.regression else names[:1])

    def check_metric(self, spec: TaskSpec, name: str) -> None:
        super().check_metric(spec, name)
        regression = _is_regression(spec)
        if name not in (OF_NUMBERS if regression else OF_CLASSES):
            sorts = ("classification", "regression") if regression else ("regression", "classification")
            raise TaskOptionError(
                f"task {spec.name!r}: metric {name!r} is for {sorts[0]}, and the task is {sorts[1]}"
            )
        if name == "f1" and len(spec.class_names or ()) != 2:
            raise TaskOptionError(
                f"task {spec.name!r}: metric {name!r} needs two classes, found "
                f"{len(spec.class_names or ())}; use 'macro_f1'"
            )

    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[Array, Any]:
        outputs = evaluated.outputs
        predictions = outputs.reshape(len(outputs)) if spec.regression else outputs.argmax(axis=-1)
        return np.asarray(evaluated.labels).reshape(-1), predictions

    def answers(self, spec: TaskSpec, evaluated: Evaluated) -> list[dict[str, Any]]:
        outputs = evaluated.outputs
        if spec.regression:
            return [{"value": float(value)} for value in outputs.reshape(len(outputs))]
        names = spec.class_names or ()
        odds = softmax(outputs.astype(np.float32), axis=-1)
        best = odds.argmax(axis=-1)
        return [
            {"label": names[index], "probability": float(row[index])}
            for index, row in zip(best, odds, strict=True)
        ]


def _is_regression(spec: TaskSpec) -> bool:
    if spec.regression is None:
        raise TaskError(
            f"task {spec.name!r} does not say whether it is a regression; take load_task(...).spec"
        )
    return spec.regression


KIND = SequenceClassification()
