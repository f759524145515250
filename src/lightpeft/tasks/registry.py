"""Every task lightpeft knows, one row each."""

from lightpeft.errors import did_you_mean, listed
from lightpeft.tasks.errors import TaskOptionError
from lightpeft.tasks.kinds import CLASSIFICATION
from lightpeft.tasks.spec import GeneratedSource, HubSource, TaskSpec
from lightpeft.tasks.superglue import SUPERGLUE
from lightpeft.tasks.synthetic import (
    Generator,
    generate_reviews,
    generate_sentiment,
    generate_sms,
    generate_spam,
)
from lightpeft.tasks.synthetic.sentiment import CLASS_NAMES as SENTIMENT
from lightpeft.tasks.synthetic.spam import CLASS_NAMES as SPAM

ENTAILMENT = ("entailment", "not_entailment")
ENTAILMENT_3 = ("entailment", "neutral", "contradiction")
EQUIVALENCE = ("not_equivalent", "equivalent")
SENTENCES = ("sentence1", "sentence2")


def _glue(
    name: str,
    text: tuple[str, ...],
    class_names: tuple[str, ...] | None,
    *metrics: str,
    validation_splits: tuple[str, ...] = ("validation",),
) -> TaskSpec:
    return TaskSpec(
        name=f"glue/{name}",
        text=text,
        class_names=class_names,
        regression=class_names is None,
        metrics=metrics,
        main=metrics,
        validation_splits=validation_splits,
        source=HubSource("nyu-mll/glue", name),
    )


def _generated(name: str, class_names: tuple[str, ...], generator: Generator) -> TaskSpec:
    return TaskSpec(
        name=f"demo/{name}",
        text=("text",),
        class_names=class_names,
        regression=False,
        metrics=("accuracy", "macro_f1"),
        main=("accuracy",),
        source=GeneratedSource(generator),
    )


def _squad(name: str) -> TaskSpec:
    return TaskSpec(
        name,
        ("question", "context"),
        "answers",
        metrics=("exact_match", "f1") + (("best_exact_match", "best_f1") if name == "squad_v2" else ()),
        main=("f1",),
        source=HubSource(f"rajpurkar/{name}", name),
        objective="question-answering",
    )


_WNUT = tuple(
    f"{place}-{kind}"
    for kind in ("corporation", "creative-work", "group", "location", "person", "product")
    for place in "BI"
)

_MATCHED = ("validation_matched", "validation")

ROWS: tuple[TaskSpec, ...] = (
    _glue("sst2", ("sentence",), ("negative", "positive"), "accuracy"),
    _glue("cola", ("sentence",), ("unacceptable", "acceptable"), "matthews"),
    _glue("mrpc", SENTENCES, EQUIVALENCE, "accuracy", "f1"),
    _glue("rte", SENTENCES, ENTAILMENT, "accuracy"),
    _glue("qnli", ("question", "sentence"), ENTAILMENT, "accuracy"),
    _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), "accuracy", "f1"),
    _glue("mnli", ("premise", "hypothesis"), ENTAILMENT_3, "accuracy", validation_splits=_MATCHED),
    _glue("stsb", SENTENCES, None, "pearson", "spearman"),
    _glue("wnli", SENTENCES, ("not_entailment", "entailment"), "accuracy"),
    *SUPERGLUE,
    TaskSpec(
        "wnut_17",
        ("tokens",),
        "ner_tags",
        ("O", *_WNUT),
        regression=False,
        metrics=("f1", "precision", "recall", "accuracy"),
        main=("f1",),
        source=HubSource("leondz/wnut_17", "wnut_17", "refs/convert/parquet"),
        objective="token-classification",
    ),
    _squad("squad"),
    _squad("squad_v2"),
    _generated("sentiment", SENTIMENT, generate_sentiment),
    _generated("reviews", SENTIMENT, generate_reviews),
    _generated("spam", SPAM, generate_spam),
    _generated("sms", SPAM, generate_sms),
)

TASKS: dict[str, TaskSpec] = {row.name: row for row in ROWS}
# GLUE has an RTE, too: of two tasks with one last part the first has it as its short name.
_BY_ANY_NAME = {row.name.rpartition("/")[2]: row for row in reversed(ROWS)} | TASKS


def task_names() -> list[str]:
    """The full names of all known tasks, sorted."""
    return sorted(TASKS)


def find_task(name: str) -> TaskSpec:
    """The task of a full name (``glue/sst2``) or its last part (``sst2``).

    Raises:
        TaskError: no such task.
    """
    if name in _BY_ANY_NAME:
        return _BY_ANY_NAME[name]
    raise TaskOptionError(
        f"unknown task {name!r}.{did_you_mean(name, _BY_ANY_NAME)} Known tasks: "
        f"{listed(task_names())}. For files of your own say which columns hold the texts (--text; in Python "
        "custom_task())."
    )


def custom_task(
    text: tuple[str, ...],
    label: str = "label",
    metric: str | None = None,
    class_names: tuple[str, ...] | None = None,
    name: str = "custom",
    objective: str = CLASSIFICATION,
) -> TaskSpec:
    """A task on files of your own; give the files to ``load_task(spec, data=...)``.

    Args:
        text: the text columns, as many as the kind of task takes; for ``causal-lm`` the text, or prompt and
            completion.
        label: the label column (not for ``causal-lm``): integers or strings for classes, floats for
            regression; of token classification a list of them.
        metric: the main metric, one of its kind's; None means the usual one: accuracy for classes, the mean
            of Pearson and Spearman correlation for regression, F1 for tokens, the loss for ``causal-lm``.
        class_names: names by class id for integer labels; None means read from the labels.
        name: how messages and reports call the task.
        objective: what is learned, a name from ``KINDS``.
    """
    metrics = (metric,) if metric else ()
    return TaskSpec(name, text, label, class_names, metrics=metrics, main=metrics, objective=objective)
