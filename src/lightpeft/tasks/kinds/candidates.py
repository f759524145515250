"""Yes or no for every candidate of a question, scored question by question (MultiRC, ReCoRD)."""

from collections import defaultdict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
from datasets import Value

from lightpeft.errors import listed
from lightpeft.tasks.columns import Columns, checked_texts
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds.classification import OF_CLASSES, SequenceClassification
from lightpeft.tasks.kinds.kind import Array, Evaluated, Metric, TaskKind, Usual
from lightpeft.tasks.kinds.question_answering import exact_match, token_f1
from lightpeft.tasks.spec import TaskSpec

GROUP, CANDIDATE = "group", "candidate"
"""The columns that say to which question a row belongs, and which answer it is about."""

Groups = dict[str, list[int]]


class Judged:
    """What was made of the candidates of all questions."""

    def __init__(self, groups: list[str], candidates: list[str], logits: Array) -> None:
        self._groups, self._logits = groups, logits
        self.said = logits.argmax(axis=-1)
        self.preference = logits[:, 1] - logits[:, 0]
        self.candidates = candidates
        self.questions: Groups = defaultdict(list)
        for row, group in enumerate(groups):
            self.questions[group].append(row)

    def of(self, rows: Array) -> "Judged":
        """Of these rows alone."""
        groups, candidates = ([values[row] for row in rows] for values in (self._groups, self.candidates))
        return Judged(groups, candidates, self._logits[rows])


def _over_rows(metric: Metric) -> Metric:
    return lambda labels, judged: metric(labels, judged.said)


def _all_right(labels: Array, judged: Judged) -> float:
    """Share of the questions of which every candidate is judged right."""
    return float(
        np.mean([np.array_equal(labels[rows], judged.said[rows]) for rows in judged.questions.values()])
    )


def _selected(measure: Callable[[str, str], float]) -> Metric:
    """The likeliest candidate of a question against the right ones, the best of them; mean over questions."""

    def score(labels: Array, judged: Judged) -> float:
        scores = []
        for rows in judged.questions.values():
            told = judged.candidates[max(rows, key=lambda row: judged.preference[row])]
            right = [judged.candidates[row] for row in rows if labels[row] == 1]
            scores.append(max((measure(one, told) for one in right), default=0.0))
        return float(np.mean(scores))

    return score


class CandidateClassification(SequenceClassification):
    """Two classes; rows with one `group` are one question, and `candidate` is the answer of a row."""

    name = "candidate-classification"
    metrics = MappingProxyType(
        {name: _over_rows(OF_CLASSES[name]) for name in ("accuracy", "f1")}
        | {
            "exact_match": _all_right,
            "selected_f1": _selected(token_f1),
            "selected_exact_match": _selected(exact_match),
        }
    )
    in_order = True

    def check(self, spec: TaskSpec) -> None:
        super().check(spec)
        if spec.regression or (spec.class_names is not None and len(spec.class_names) != 2):
            found = "numbers" if spec.regression else listed(spec.class_names or ())
            raise TaskOptionError(
                f"task {spec.name!r} says yes or no to candidates: give it two classes, found {found}"
            )

    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        groups, candidates = (checked_texts((name,), table)["text"] for name in (GROUP, CANDIDATE))
        return super().columns(spec, table) | {GROUP: groups, CANDIDATE: candidates}

    def types(self, spec: TaskSpec) -> dict[str, Any]:
        return super().types(spec) | {GROUP: Value("string"), CANDIDATE: Value("string")}

    def usual(self, spec: TaskSpec) -> Usual:
        return Usual(("f1", "exact_match", "accuracy"), ("f1", "exact_match"))

    def check_metric(self, spec: TaskSpec, name: str) -> None:
        TaskKind.check_metric(self, spec, name)  # not by what classes alone are measured by

    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[Array, Any]:
        if evaluated.split is None:
            raise TaskError(
                "candidates are scored by their questions: give compute_metrics_for the split of "
                f"{spec.name!r}"
            )
        groups, candidates = evaluated.split[GROUP][:], evaluated.split[CANDIDATE][:]
        return np.asarray(evaluated.labels).reshape(-1), Judged(groups, candidates, evaluated.outputs)

    def count(self, compared: tuple[Array, Judged]) -> int:
        """Whole questions."""
        return len(compared[1].questions)

    def rows_of(self, compared: tuple[Array, Judged], rows: Array) -> tuple[Array, Judged]:
        labels, judged = compared
        questions = list(judged.questions.values())
        chosen = np.concatenate([questions[row] for row in rows])
        return labels[chosen], judged.of(chosen)


KIND = CandidateClassification()
