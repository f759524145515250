"""Metrics by name, and the numbers a task is judged by.

Metrics of labels are fractions, and 1.0 is perfect: accuracy and F1 lie in 0..1, correlations (Matthews,
Pearson, Spearman) in -1..1. Metrics of language models are better the lower they are: the loss in nats per
token, and perplexity, its exponential.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from lightpeft.errors import did_you_mean, listed
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.spec import TaskSpec

Array = NDArray[Any]

Kind = Literal["classification", "regression", "language modelling"]

RELATIVE_ROUNDING = 1e-13
LARGEST_LOSS = 100.0
"""Nats per token; guessing among a million tokens costs 14."""


@dataclass(frozen=True)
class Metric:
    """A score of (labels, predictions), both of shape (examples,): class ids or floats.

    Of language modelling the predictions are of shape (examples, 2), see ``token_losses``.
    """

    score: Callable[[Array, Array], float]
    kind: Kind = "classification"
    binary: bool = False


def _binary_f1(labels: Array, predictions: Array) -> float:
    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))


def _macro_f1(labels: Array, predictions: Array) -> float:
    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


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


def _accuracy(labels: Array, predictions: Array) -> float:
    return float(accuracy_score(labels, predictions))


def _matthews(labels: Array, predictions: Array) -> float:
    """Matthews correlation, 0.0 where it is not defined because one side is constant."""
    if len(set(labels)) == 1 or len(set(predictions)) == 1:
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def _loss(_labels: Array, token_losses: Array) -> float:
    """Mean loss per token over all texts: the sum of the losses over the number of tokens."""
    total, count = token_losses.astype(np.float64).sum(axis=0)
    return float(total / count)


def _perplexity(labels: Array, token_losses: Array) -> float:
    return math.exp(_loss(labels, token_losses))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "f1": Metric(_binary_f1, binary=True),
    "macro_f1": Metric(_macro_f1),
    "matthews": Metric(_matthews),
    "pearson": Metric(_pearson, "regression"),
    "spearman": Metric(_spearman, "regression"),
    "loss": Metric(_loss, "language modelling"),
    "perplexity": Metric(_perplexity, "language modelling"),
}

USUAL: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("pearson", "spearman"),
    "language modelling": ("loss", "perplexity"),
}
"""What a task of your own is measured by; the main one is the first, of a regression the mean of both."""


def with_metrics(spec: TaskSpec) -> TaskSpec:
    """The spec with the usual metrics of its kind added, and its main metrics filled in.

    Raises:
        TaskError: an unknown metric, or one that does not fit the kind of labels.
    """
    for name in (*spec.metrics, *spec.main):
        _check_fit(name, spec)
    if spec.metrics and spec.source is not None:
        return replace(spec, main=spec.main or spec.metrics)
    usual = USUAL[_kind(spec)]
    main = spec.main or spec.metrics or (usual if spec.regression else usual[:1])
    return replace(spec, metrics=tuple(dict.fromkeys((*spec.metrics, *usual))), main=main)


def compute_metrics_for(spec: TaskSpec) -> Callable[[EvalPrediction], dict[str, float]]:
    """A ``compute_metrics`` for ``transformers.Trainer``.

    It takes logits of shape (examples, classes), or (examples, 1) or (examples,) for regression;
    of a tuple of outputs the first is used. For language modelling it takes what ``token_losses``
    makes of the logits (the Trainer's ``preprocess_logits_for_metrics``). It gives each metric of the
    task by name, and ``main``: the mean of the task's main metrics.

    Raises:
        TaskError: the spec is not resolved (take ``load_task(...).spec``) or a metric does not
            fit; when called: no examples, or predictions that are NaN or infinite.
    """
    if spec.has_labels and spec.regression is None:
        raise TaskError(
            f"task {spec.name!r} does not say whether it is a regression; take load_task(...).spec"
        )
    spec = with_metrics(spec)

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        predictions = _predictions(evaluated.predictions, _kind(spec))
        labels = np.asarray(evaluated.label_ids).reshape(-1)
        names = dict.fromkeys((*spec.metrics, *spec.main))
        scores = {name: METRICS[name].score(labels, predictions) for name in names}
        return scores | {"main": sum(scores[name] for name in spec.main) / len(spec.main)}

    return compute_metrics


def _kind(spec: TaskSpec) -> Kind:
    if not spec.has_labels:
        return "language modelling"
    return "regression" if spec.regression else "classification"


def _check_fit(name: str, spec: TaskSpec) -> None:
    if name not in METRICS:
        hint = did_you_mean(name, METRICS)
        raise TaskOptionError(f"task {spec.name!r}: unknown metric {name!r}.{hint} Known: {listed(METRICS)}")
    if METRICS[name].kind != _kind(spec):
        raise TaskOptionError(
            f"task {spec.name!r}: metric {name!r} is for {METRICS[name].kind}, and the task is {_kind(spec)}"
        )
    if METRICS[name].binary and len(spec.class_names or ()) != 2:
        raise TaskOptionError(
            f"task {spec.name!r}: metric {name!r} needs two classes, found "
            f"{len(spec.class_names or ())}; use 'macro_f1'"
        )


def _predictions(outputs: Any, kind: Kind) -> Array:
    logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
    if not len(logits):
        raise TaskError("no predictions to score: the evaluated split is empty")
    broken = int((~np.isfinite(logits)).reshape(len(logits), -1).any(axis=1).sum())
    if broken:
        raise TaskError(
            f"{broken} of {len(logits)} predictions are NaN or infinite; the training diverged: "
            f"lower the learning rate, or where it was float16 take bfloat16"
        )
    if kind == "language modelling":
        return _checked_losses(logits)
    result: Array = logits.reshape(len(logits)) if kind == "regression" else logits.argmax(axis=-1)
    return result


def _checked_losses(token_losses: Array) -> Array:
    total, count = token_losses.astype(np.float64).sum(axis=0)
    if not count:
        raise TaskError("no token to score: the evaluated split has no text that a token is predicted of")
    if total / count > LARGEST_LOSS:
        raise TaskError(
            f"the loss is {total / count:.0f} nats per token; the training diverged: lower the learning rate"
        )
    return token_losses
