"""Metrics against values worked out by hand, and the cases that libraries warn about."""

import numpy as np
import pytest
from transformers import EvalPrediction

from lightpeft.tasks import Evaluated, TaskError, TaskSpec, compute_metrics_for, find_kind, find_task
from lightpeft.tasks.metrics import with_metrics

METRICS = find_kind("sequence-classification").metrics
LABELS = np.array([1, 1, 1, 0, 0, 1])
GUESSES = np.array([1, 1, 0, 0, 1, 1])


def logits_of(classes: np.ndarray, count: int = 2) -> np.ndarray:
    return np.eye(count)[classes]


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("accuracy", 4 / 6),
        ("f1", 2 * 3 / (2 * 3 + 1 + 1)),
        ("macro_f1", (0.75 + 0.5) / 2),
        ("matthews", (3 * 1 - 1 * 1) / np.sqrt(4 * 4 * 2 * 2)),
    ],
)
def test_classification_scores_by_hand(name: str, score: float) -> None:
    assert METRICS[name](LABELS, GUESSES) == pytest.approx(score)


def test_correlations_by_hand() -> None:
    labels, guesses = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0])
    assert METRICS["spearman"](labels, guesses) == pytest.approx(1.0)
    assert METRICS["pearson"](labels, guesses) == pytest.approx(25 / np.sqrt(5 * 129))
    assert METRICS["pearson"](labels, -guesses) == pytest.approx(-25 / np.sqrt(5 * 129))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e30])
def test_constant_predictions_have_correlation_zero(name: str, value: float) -> None:
    constant = np.full(7, value, dtype=np.float32)
    varied = np.arange(7, dtype=np.float32)
    assert METRICS[name](varied, constant) == 0.0
    assert METRICS[name](constant, varied) == 0.0
    assert METRICS[name](varied[:1], varied[:1]) == 0.0


@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "matthews"])
@pytest.mark.parametrize("constant", [0, 1])
def test_constant_classes_score_without_warnings(name: str, constant: int) -> None:
    guesses = np.full(6, constant)
    assert 0.0 <= METRICS[name](LABELS, guesses) <= 0.8
    assert METRICS[name](guesses, guesses) in (0.0, 1.0)


def test_main_is_the_mean_of_the_main_metrics() -> None:
    scores = compute_metrics_for(find_task("mrpc"))(EvalPrediction(logits_of(GUESSES), LABELS))
    assert set(scores) == {"accuracy", "f1", "main"}
    assert scores["main"] == pytest.approx((4 / 6 + 0.75) / 2)


@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_regression_takes_one_output(shape: tuple[int, ...]) -> None:
    outputs = np.array([0.1, 0.9, 2.2, 2.8, 4.1, 5.3]).reshape(shape)
    scores = compute_metrics_for(find_task("stsb"))(EvalPrediction(outputs, np.arange(6.0)))
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["main"] == pytest.approx((scores["pearson"] + scores["spearman"]) / 2)


def test_the_first_of_several_outputs_is_used() -> None:
    outputs = (logits_of(LABELS), np.zeros((6, 3)))
    assert compute_metrics_for(find_task("sst2"))(EvalPrediction(outputs, LABELS)) == {
        "accuracy": 1.0,
        "main": 1.0,
    }


def test_broken_predictions_are_counted() -> None:
    outputs = logits_of(GUESSES)
    outputs[1, 0], outputs[4, 1] = np.nan, np.inf
    with pytest.raises(TaskError, match="2 of 6 predictions are NaN or infinite"):
        compute_metrics_for(find_task("sst2"))(EvalPrediction(outputs, LABELS))


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(TaskError, match="the evaluated split is empty"):
        compute_metrics_for(find_task("rte"))(EvalPrediction(np.zeros((0, 2)), np.zeros(0)))


def classes(names: tuple[str, ...] = ("a", "b"), metric: str | None = None) -> TaskSpec:
    metrics = (metric,) if metric else ()
    return TaskSpec("t", ("x",), class_names=names, regression=False, metrics=metrics, main=metrics)


def test_own_tasks_get_the_usual_metrics_beside_their_own() -> None:
    assert with_metrics(classes()).metrics == ("accuracy", "macro_f1")
    assert with_metrics(classes()).main == ("accuracy",)
    assert with_metrics(classes(metric="f1")).metrics == ("f1", "accuracy", "macro_f1")
    assert with_metrics(classes(metric="f1")).main == ("f1",)
    assert with_metrics(with_metrics(classes(metric="f1"))) == with_metrics(classes(metric="f1"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (classes(metric="acuracy"), r"unknown metric 'acuracy'\. Did you mean 'accuracy'\?"),
        (classes(metric="pearson"), "'pearson' is for regression"),
        (classes(("a", "b", "c"), "f1"), "'f1' needs two classes, found 3; use 'macro_f1'"),
        (TaskSpec("t", ("x",), regression=True, metrics=("accuracy",)), "is for classification"),
        (TaskSpec("t", ("x",)), r"take load_task\(\.\.\.\)\.spec"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(spec: TaskSpec, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        compute_metrics_for(spec)


def _accuracy_of(rows: list[int]) -> float:
    return float((LABELS[rows] == GUESSES[rows]).mean())


@pytest.mark.parametrize("parts", [2, 3, 6, 20])
def test_parts_left_out_are_scored_as_the_rest_alone(parts: int) -> None:
    spec, evaluated = with_metrics(find_task("sst2")), Evaluated(logits_of(GUESSES), LABELS)
    found = find_kind(spec.objective).mains_without(spec, evaluated, parts)
    rests = [[row for row in range(6) if row % parts != part] for part in range(min(parts, 6))]
    assert found == [pytest.approx(_accuracy_of(rest)) for rest in rests]


def test_parts_of_what_cannot_be_scored_are_refused() -> None:
    outputs = logits_of(GUESSES)
    outputs[0, 0] = np.nan
    with pytest.raises(TaskError, match="1 of 6 predictions are NaN"):
        find_kind("sequence-classification").mains_without(find_task("sst2"), Evaluated(outputs, LABELS), 3)
