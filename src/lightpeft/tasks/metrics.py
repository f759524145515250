"""The numbers a task is judged by; each kind of task has the metrics of its own file."""

from collections.abc import Callable
from dataclasses import replace

from datasets import Dataset
from transformers import EvalPrediction, PreTrainedTokenizerBase

from lightpeft.tasks.kinds import find_kind
from lightpeft.tasks.spec import TaskSpec


def with_metrics(spec: TaskSpec) -> TaskSpec:
    """The spec with the usual metrics of its kind added, and its main metrics filled in.

    Raises:
        TaskError: an unknown metric, or one that does not fit the kind of labels.
    """
    kind = find_kind(spec.objective)
    for name in (*spec.metrics, *spec.main):
        kind.check_metric(spec, name)
    if spec.metrics and spec.source is not None:
        return replace(spec, main=spec.main or spec.metrics)
    usual = kind.usual(spec)
    return replace(
        spec,
        metrics=tuple(dict.fromkeys((*spec.metrics, *usual.metrics))),
        main=spec.main or spec.metrics or usual.main,
    )


def compute_metrics_for(
    spec: TaskSpec,
    split: Dataset | None = None,
    features: Dataset | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Callable[[EvalPrediction], dict[str, float]]:
    """A ``compute_metrics`` for ``transformers.Trainer``.

    It takes what the kind of task keeps of a batch's logits (``find_kind(spec.objective).kept``, the
    Trainer's ``preprocess_logits_for_metrics``): of classes the logits themselves, (examples, classes), or
    (examples, 1) or (examples,) for regression; of language modelling what ``token_losses`` makes of
    them; of a tuple of outputs the first is used. It gives each metric of the task by name, and ``main``:
    the mean of the task's main metrics.

    Args:
        split, features, tokenizer: what is evaluated, what was made of it, and by what; of kinds that are
            scored by what is in the split (answers in contexts, candidates, texts that are written).

    Raises:
        TaskError: the spec is not resolved (take ``load_task(...).spec``) or a metric does not
            fit; when called: no examples, or predictions that are NaN or infinite.
    """
    spec, kind = with_metrics(spec), find_kind(spec.objective)

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        return kind.score(spec, evaluated.predictions, evaluated.label_ids, split, features, tokenizer)

    return compute_metrics
