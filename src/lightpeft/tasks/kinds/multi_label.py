"""Any number of classes for one or two texts."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from datasets import Dataset, List, Value
from peft import TaskType
from scipy.special import expit
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.class_lists import check_list, known_lists, resolve_lists
from lightpeft.tasks.columns import Columns, checked_texts, column
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.features import encode
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds.kind import Array, Evaluated, Metric, TaskKind, Usual, class_names_options
from lightpeft.tasks.spec import TaskSpec


def _f1(average: str) -> Metric:
    return lambda labels, found: float(f1_score(labels, found, average=average, zero_division=0.0))


def _exact_match(labels: Array, found: Array) -> float:
    """Share of the texts of which every class is right."""
    return float(accuracy_score(labels, found))


class MultiLabelClassification(TaskKind):
    """Lists of classes, which may be empty. A class is told where it is likelier than not."""

    name = "multi-label-classification"
    auto_class = AutoModelForSequenceClassification
    peft_task = TaskType.SEQ_CLS
    metrics = MappingProxyType(
        {"micro_f1": _f1("micro"), "macro_f1": _f1("macro"), "exact_match": _exact_match}
    )

    def check(self, spec: TaskSpec) -> None:
        super().check(spec)
        if spec.regression:
            raise TaskOptionError(f"task {spec.name!r} gives texts classes and cannot be a regression")

    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        labels = column(table, spec.label)
        for row, classes in enumerate(labels, start=1):
            where = f"{table.where}, row {row}, column {spec.label!r}"
            check_list(classes, where, "classes", (str, int))
            if len(set(classes)) < len(classes):
                raise TaskError(f"{where}: {classes!r:.60} has one class twice")
        return checked_texts(spec.text, table) | {"label": labels}

    def resolve(
        self, spec: TaskSpec, splits: Mapping[str, Columns]
    ) -> tuple[TaskSpec, Mapping[str, Columns]]:
        spec, splits = resolve_lists(spec, splits)
        return spec, {split: _marked(spec, found) for split, found in splits.items()}

    def known(self, spec: TaskSpec, columns: Columns) -> Columns:
        return _marked(spec, known_lists(spec, columns))

    def check_training(self, spec: TaskSpec, columns: Columns) -> None:
        if len(set(map(tuple, columns["label"]))) < 2:
            raise TaskError(
                f"task {spec.name!r}: all training rows have the same classes; there is nothing to learn. "
                f"Check the column {spec.label!r} and train_limit"
            )

    def types(self, spec: TaskSpec) -> dict[str, Any]:
        return {"label": List(Value("float32"))}

    def head(self, spec: TaskSpec) -> dict[str, Any]:
        options = class_names_options(spec.class_names or ())
        return options | {"problem_type": "multi_label_classification"}

    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        return encode(split, tokenizer, training.tokens)

    def usual(self, spec: TaskSpec) -> Usual:
        return Usual(("micro_f1", "macro_f1", "exact_match"), ("micro_f1",))

    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[Array, Array]:
        return np.asarray(evaluated.labels).astype(int), (evaluated.outputs > 0).astype(int)

    def answers(self, spec: TaskSpec, evaluated: Evaluated) -> list[dict[str, Any]]:
        names = spec.class_names or ()
        return [
            {
                "labels": [name for name, value in zip(names, odds, strict=True) if value > 0.5],
                "probabilities": dict(zip(names, map(float, odds), strict=True)),
            }
            for odds in expit(evaluated.outputs.astype(np.float32))
        ]


def _marked(spec: TaskSpec, columns: Columns) -> Columns:
    """The labels as a number for every class: 1 where a row has it."""
    marks = np.eye(len(spec.class_names or ()), dtype=np.float32)
    return columns | {"label": [marks[classes].sum(axis=0).tolist() for classes in columns["label"]]}


KIND = MultiLabelClassification()
