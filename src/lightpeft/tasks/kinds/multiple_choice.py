"""The right one of some texts that could follow a context (COPA, SWAG, HellaSwag)."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Dataset, List, Value
from peft import TaskType
from scipy.special import softmax
from sklearn.metrics import accuracy_score
from transformers import (
    AutoModelForMultipleChoice,
    DataCollatorForMultipleChoice,
    PreTrainedTokenizerBase,
)

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.columns import Columns, check_strings, checked_texts, column
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.features import TYPES, encode
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds.kind import Array, Collator, Evaluated, Metric, TaskKind, Usual
from lightpeft.tasks.spec import TaskSpec


def _accuracy(labels: Array, predictions: Array) -> float:
    return float(accuracy_score(labels, predictions))


class MultipleChoice(TaskKind):
    """A number of choices, the same for all rows. The first text column is the context.

    The others are the choices; where there is one other, its values are lists of them.
    """

    name = "multiple-choice"
    auto_class: ClassVar[Any] = AutoModelForMultipleChoice
    # PEFT has no name of its own for it; this one keeps the head beside the adapter.
    peft_task = TaskType.SEQ_CLS
    metrics: ClassVar[Mapping[str, Metric]] = MappingProxyType({"accuracy": _accuracy})
    takes_classes = False
    for_decoders: ClassVar[str | None] = "causal-multiple-choice"
    batch_size = 32

    def check_texts(self, spec: TaskSpec) -> None:
        if isinstance(spec.text, str) or len(spec.text) < 2:
            raise TaskOptionError(
                f"task {spec.name!r}: text must be a tuple of the context's column and those of the choices, "
                f"or one column of lists; found {spec.text!r}"
            )

    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        contexts = checked_texts(spec.text[:1], table)
        choices = _choices(spec, table)
        where = f"{table.where}, column {spec.label!r}"
        labels = [
            _number(value, len(choices[0]), f"{where}, row {row}")
            for row, value in enumerate(column(table, spec.label), start=1)
        ]
        return contexts | {"choices": choices, "label": labels}

    def check_training(self, spec: TaskSpec, columns: Columns) -> None:
        if len(set(columns["label"])) < 2:
            raise TaskError(
                f"task {spec.name!r}: choice {columns['label'][0]} is right in all {len(columns['label'])} "
                f"training rows; there is nothing to learn. Check the column {spec.label!r} and train_limit"
            )

    def types(self, spec: TaskSpec) -> dict[str, Any]:
        return {"choices": List(Value("string")), "label": Value("int64")}

    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        """Every choice behind its context: `input_ids` of (rows, choices, tokens)."""
        choices = split["choices"][:]
        count = len(choices[0])
        pairs = {
            "text": [text for text in split["text"] for _ in range(count)],
            "text_pair": [choice for row in choices for choice in row],
        }
        flat = encode(Dataset.from_dict(pairs), tokenizer, training.tokens)
        columns = {
            name: pa.FixedSizeListArray.from_arrays(
                flat.data.column(name).combine_chunks().cast(TYPES[name]), count
            ).cast(pa.list_(TYPES[name]))
            for name in flat.column_names
        }
        labels = split["label"][:] if "label" in split.column_names else [0] * len(split)
        return Dataset.from_dict(columns | {"labels": labels})

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        collator: Collator = DataCollatorForMultipleChoice(tokenizer)
        return collator

    def usual(self, spec: TaskSpec) -> Usual:
        return Usual(("accuracy",), ("accuracy",))

    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[Array, Array]:
        return np.asarray(evaluated.labels).reshape(-1), evaluated.outputs.argmax(axis=-1)

    def examples(self, spec: TaskSpec, lines: Sequence[str], where: str) -> Dataset:
        """The context and its choices, tabs between."""
        rows = [line.split("\t") for line in lines]
        wanted = len(spec.text) if len(spec.text) > 2 else max(map(len, rows), default=0)
        for number, row in enumerate(rows, start=1):
            if len(row) != wanted or wanted < 3:
                raise TaskError(
                    f"{where}, line {number}: found {len(row)} texts, expected a context and "
                    f"{max(wanted, 3) - 1} choices; put a tab between them"
                )
        return Dataset.from_dict({"text": [row[0] for row in rows], "choices": [row[1:] for row in rows]})

    def logs(self, evaluated: Evaluated) -> Array:
        """(rows, choices): the logarithms of what the choices' probabilities are shares of."""
        return evaluated.outputs.astype(np.float32)

    def answers(self, spec: TaskSpec, evaluated: Evaluated) -> list[dict[str, Any]]:
        assert evaluated.split is not None
        odds = softmax(self.logs(evaluated), axis=-1)
        return [
            {"choice": int(row.argmax()), "text": choices[row.argmax()], "probability": float(row.max())}
            for choices, row in zip(evaluated.split["choices"], odds, strict=True)
        ]


def _choices(spec: TaskSpec, table: Table) -> list[list[str]]:
    """The choices of every row.

    Raises:
        TaskError: a choice that is no text, or rows that have more of them than others.
    """
    if len(spec.text) > 2:
        columns = [checked_texts((name,), table)["text"] for name in spec.text[1:]]
        return [list(row) for row in zip(*columns, strict=True)]
    rows = column(table, spec.text[1])
    where = f"{table.where}, column {spec.text[1]!r}"
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list) or len(row) < 2:
            raise TaskError(
                f"{where}, row {number}: expected a list of two choices or more, found {row!r:.60}"
            )
        if len(row) != len(rows[0]):
            raise TaskError(
                f"{where}, row {number}: {len(row)} choices, but row 1 has {len(rows[0])}; give all as many"
            )
        check_strings(row, f"{where}, row {number}")
    return rows


def _number(value: Any, choices: int, where: str) -> int:
    """Which choice is the right one, from 0."""
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.isdecimal():
        text = int(text)
    if not isinstance(text, int) or isinstance(text, bool) or not 0 <= text < choices:
        raise TaskError(
            f"{where}: the label {value!r:.60} is none of the choices, numbered from 0 to {choices - 1}"
        )
    return text


KIND = MultipleChoice()
