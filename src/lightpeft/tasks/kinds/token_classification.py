"""One class for every word of a text: named entities (tags like B-person), parts of speech."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, List, Value
from peft import TaskType
from seqeval import metrics as seqeval
from sklearn.metrics import accuracy_score
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from lightpeft.errors import listed
from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.class_lists import check_list, known_lists, resolve_lists
from lightpeft.tasks.columns import Columns, column, filled_column
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.features import IGNORED, encode_words
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds.kind import Collator, Evaluated, Metric, TaskKind, Usual, class_names_options
from lightpeft.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)

Tags = list[list[str]]

ENTITY_TAG = re.compile(r"O|[BIESLU]-.+")


def _precision(labels: Tags, predictions: Tags) -> float:
    return float(seqeval.precision_score(labels, predictions, zero_division=0))


def _recall(labels: Tags, predictions: Tags) -> float:
    return float(seqeval.recall_score(labels, predictions, zero_division=0))


def _f1(labels: Tags, predictions: Tags) -> float:
    return float(seqeval.f1_score(labels, predictions, zero_division=0))


def _accuracy(labels: Tags, predictions: Tags) -> float:
    """Share of the words with the right tag."""
    return float(
        accuracy_score([tag for row in labels for tag in row], [t for row in predictions for t in row])
    )


OF_ENTITIES: dict[str, Metric] = {"f1": _f1, "precision": _precision, "recall": _recall}
"""Of whole entities, over all types together, as seqeval (and conlleval before it) counts them."""


class TokenClassification(TaskKind):
    """A tag per word. Metrics are fractions; the first token of a word is the one that is learned."""

    name = "token-classification"
    auto_class = AutoModelForTokenClassification
    peft_task = TaskType.TOKEN_CLS
    metrics = OF_ENTITIES | {"accuracy": _accuracy}
    texts = (1,)

    def check(self, spec: TaskSpec) -> None:
        super().check(spec)
        if spec.regression:
            raise TaskOptionError(f"task {spec.name!r} gives words classes and cannot be a regression")

    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        words, tags = filled_column(table, spec.text[0]), column(table, spec.label)
        for row, (some, theirs) in enumerate(zip(words, tags, strict=True), start=1):
            where = f"{table.where}, row {row}"
            check_list(some, f"{where}, column {spec.text[0]!r}", "words", (str,))
            check_list(theirs, f"{where}, column {spec.label!r}", "tags", (str, int))
            if len(some) != len(theirs):
                raise TaskError(f"{where}: {len(some)} words, but {len(theirs)} tags; give every word one")
        return {"text": words, "label": tags}

    def resolve(
        self, spec: TaskSpec, splits: Mapping[str, Columns]
    ) -> tuple[TaskSpec, Mapping[str, Columns]]:
        return resolve_lists(spec, splits)

    def known(self, spec: TaskSpec, columns: Columns) -> Columns:
        return known_lists(spec, columns)

    def check_training(self, spec: TaskSpec, columns: Columns) -> None:
        found = {tag for tags in columns["label"] for tag in tags}
        if len(found) < 2:
            names = listed((spec.class_names or ())[tag] for tag in found)
            raise TaskError(
                f"task {spec.name!r}: all training words have the tag {names}; there is nothing to learn. "
                f"Check the column {spec.label!r} and train_limit"
            )

    def types(self, spec: TaskSpec) -> dict[str, Any]:
        return {"text": List(Value("string")), "label": List(Value("int64"))}

    def head(self, spec: TaskSpec) -> dict[str, Any]:
        return class_names_options(spec.class_names or ())

    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        """Of a split without labels, the labels are the numbers of the words."""
        rows = split["text"][:]
        features, of_words = encode_words(rows, tokenizer, training.tokens)
        given = split["label"][:] if "label" in split.column_names else None
        labels: list[list[int]] = []
        seen, words = 0, sum(map(len, rows))
        for row, tokens in enumerate(of_words):
            first: dict[int, int] = {}
            for place, word in enumerate(tokens):
                if word is not None:
                    first.setdefault(word, place)
            learned = [IGNORED] * len(tokens)
            for word, place in first.items():
                learned[place] = word if given is None else given[row][word]
            labels.append(learned)
            seen += len(first)
        if seen < words:
            logger.warning(
                "%d of %d words are beyond %d tokens, or have none, and are neither learned nor scored",
                words - seen,
                words,
                training.tokens,
            )
        return Dataset.from_dict(features | {"labels": pa.array(labels, pa.list_(pa.int64()))})

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        collator: Collator = DataCollatorForTokenClassification(tokenizer)
        return collator

    def usual(self, spec: TaskSpec) -> Usual:
        if _has_entities(spec):
            return Usual(("f1", "precision", "recall", "accuracy"), ("f1",))
        return Usual(("accuracy",), ("accuracy",))

    def check_metric(self, spec: TaskSpec, name: str) -> None:
        super().check_metric(spec, name)
        if name in OF_ENTITIES and spec.class_names is not None and not _has_entities(spec):
            odd = [tag for tag in spec.class_names if not ENTITY_TAG.fullmatch(tag)]
            raise TaskOptionError(
                f"task {spec.name!r}: metric {name!r} counts entities, tagged like B-person, I-person and O, "
                f"and there are tags {listed(odd, 3)}; use 'accuracy'"
            )

    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[Tags, Tags]:
        names, labels = spec.class_names or (), np.asarray(evaluated.labels)
        best = evaluated.outputs.argmax(axis=-1)
        counted = labels != IGNORED
        both = ((labels[row][counted[row]], best[row][counted[row]]) for row in range(len(labels)))
        right, found = zip(*both, strict=True)
        return [[names[tag] for tag in row] for row in right], [[names[tag] for tag in row] for row in found]

    def examples(self, spec: TaskSpec, lines: Sequence[str], where: str) -> Dataset:
        """Every line split into its words at white space."""
        return Dataset.from_dict({"text": pa.array([line.split() for line in lines], pa.list_(pa.string()))})

    def answers(self, spec: TaskSpec, evaluated: Evaluated) -> list[dict[str, Any]]:
        """The words of a line and their tags; None for words that were beyond the length."""
        assert evaluated.split is not None
        names, best = spec.class_names or (), evaluated.outputs.argmax(axis=-1)
        found = []
        for row, words in enumerate(evaluated.split["text"]):
            tags: list[str | None] = [None] * len(words)
            numbers = evaluated.labels[row]
            for place in (numbers != IGNORED).nonzero()[0]:
                tags[numbers[place]] = names[best[row][place]]
            found.append({"words": words, "tags": tags})
        return found


def _has_entities(spec: TaskSpec) -> bool:
    return all(ENTITY_TAG.fullmatch(tag) for tag in spec.class_names or ())


KIND = TokenClassification()
