"""The task table: names, rows that fit together, and what is said about a wrong name."""

from pathlib import Path

import pytest

from lightpeft.tasks import TASKS, TaskError, TaskSpec, custom_task, find_kind, find_task, task_names
from lightpeft.tasks.metrics import with_metrics
from lightpeft.tasks.registry import ROWS
from lightpeft.tasks.spec import HubSource

MAIN = {
    "sst2": ("accuracy",),
    "cola": ("matthews",),
    "mrpc": ("accuracy", "f1"),
    "rte": ("accuracy",),
    "qnli": ("accuracy",),
    "qqp": ("accuracy", "f1"),
    "mnli": ("accuracy",),
    "stsb": ("pearson", "spearman"),
    "wnli": ("accuracy",),
}


@pytest.mark.parametrize("name", MAIN)
def test_glue_tasks_have_their_official_main_metrics(name: str) -> None:
    spec = find_task(name)
    assert spec is find_task(f"glue/{name}")
    assert spec.main == MAIN[name]
    assert spec.source == HubSource("nyu-mll/glue", name)
    assert spec.regression == (name == "stsb")


@pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.name)
def test_every_row_is_complete(spec: TaskSpec) -> None:
    assert set(spec.main) <= set(spec.metrics) <= set(find_kind(spec.objective).metrics)
    assert with_metrics(spec) == spec
    assert spec.source is not None
    if spec.objective == "sequence-classification":
        assert (spec.class_names is None) == spec.regression


def test_full_and_short_names_are_unique() -> None:
    assert len(TASKS) == len(ROWS)
    short = [name.rpartition("/")[2] for name in TASKS]
    assert {name for name in short if short.count(name) > 1} == {"rte"}
    assert find_task("rte").name == "glue/rte"
    assert task_names() == sorted(TASKS)


def test_mnli_validates_on_the_matched_split() -> None:
    assert find_task("mnli").validation_splits == ("validation_matched", "validation")


@pytest.mark.parametrize(
    ("typed", "meant"), [("stt2", "sst2"), ("SST2", "sst2"), ("glue/colla", "glue/cola")]
)
def test_unknown_names_get_a_suggestion_and_the_list(typed: str, meant: str) -> None:
    with pytest.raises(TaskError, match=rf"unknown task '{typed}'\. Did you mean '{meant}'\?") as e:
        find_task(typed)
    assert "'demo/sentiment'" in str(e.value)
    assert "custom_task()" in str(e.value)


def test_a_custom_task_leaves_kind_and_classes_to_the_data() -> None:
    spec = custom_task(text=("title", "body"), label="topic", metric="macro_f1")
    assert (spec.regression, spec.class_names, spec.source) == (None, None, None)
    assert spec.main == ("macro_f1",)


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("text", "label", "tuple of one or two"),
        ((), "label", "tuple of one or two"),
        (("a", "b", "c"), "label", "tuple of one or two"),
        (("a", "a"), "label", "one column twice"),
        (("a",), "a", "one column twice"),
    ],
)
def test_impossible_columns_are_refused(text: tuple[str, ...], label: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        custom_task(text=text, label=label)


def test_regression_has_no_class_names() -> None:
    with pytest.raises(TaskError, match="cannot have class names"):
        TaskSpec("t", ("text",), class_names=("a", "b"), regression=True)


OTHER_LABELS = {
    "multiple-choice": "number of the choice",
    "sequence-classification": "score 0 to 5",
    "question-answering": "words of the context",
}


@pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.name)
def test_the_documentation_has_the_row(spec: TaskSpec) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{spec.name}` |"))
    _, _, text, main, labels, _ = (cell.strip() for cell in row.split("|"))
    assert text.removesuffix(" (generated)") == ", ".join(spec.text)
    assert main == ", ".join(spec.main)
    assert labels == ", ".join(spec.class_names or [OTHER_LABELS[spec.objective]])
