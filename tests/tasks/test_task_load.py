"""load_task end to end: what comes out, and what is refused before anything is trained."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from lightpeft.tasks import TaskError, TaskSpec, custom_task, load_task

CUSTOM = custom_task(text=("text",))
PAIRS = custom_task(text=("premise", "hypothesis"))


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    for split, rows in splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return folder


def rows(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


def test_string_labels_become_the_sorted_training_classes(tmp_path: Path) -> None:
    data = load_task(CUSTOM, write(tmp_path, train=rows("b", "c", "a"), validation=rows("c", "a")))
    assert data.class_names == ("a", "b", "c")
    assert data.train["label"][:] == [1, 2, 0]
    assert data.validation["label"][:] == [2, 0]
    assert (data.num_labels, data.is_regression, data.test) == (3, False, None)
    assert data.id2label == {0: "a", 1: "b", 2: "c"}
    assert data.spec.main == ("accuracy",)


def test_float_labels_are_a_regression(tmp_path: Path) -> None:
    data = load_task(CUSTOM, write(tmp_path, train=rows(0.5, 1.25, 3), validation=rows(2.0)))
    assert data.is_regression
    assert (data.num_labels, data.class_names) == (1, ())
    assert data.train["label"][:] == [0.5, 1.25, 3.0]
    assert data.train.features["label"].dtype == "float32"
    assert data.spec.main == ("pearson", "spearman")


def test_whole_floats_are_a_regression_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = load_task(CUSTOM, write(tmp_path, train=rows(0.0, 1.0), validation=rows(1.0)))
    assert data.is_regression
    assert "write them as integers if they are classes" in caplog.text


@pytest.mark.parametrize(
    ("labels", "names"),
    [((1, 2, 5), ("1", "2", "5")), ((False, True), ("False", "True")), ((10, 9), ("9", "10"))],
)
def test_integers_and_booleans_are_classes(
    tmp_path: Path, labels: tuple[Any, ...], names: tuple[str, ...]
) -> None:
    data = load_task(CUSTOM, write(tmp_path, train=rows(*labels), validation=rows(labels[-1])))
    assert data.class_names == names
    assert [names[label] for label in data.train["label"]] == [str(label) for label in labels]


def test_two_texts_become_text_and_text_pair(tmp_path: Path) -> None:
    pairs = [{"premise": "p", "hypothesis": "h", "label": label, "more": 0} for label in (0, 1)]
    data = load_task(PAIRS, write(tmp_path, train=pairs, validation=pairs, test=pairs))
    assert data.train[0] == {"text": "p", "text_pair": "h", "label": 0}
    assert data.test is not None
    assert data.test.column_names == ["text", "text_pair", "label"]


def test_labels_of_csv_are_read_as_numbers_or_strings(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,x\n")
    (tmp_path / "validation.csv").write_text("text,label\nc,1\n")
    data = load_task(CUSTOM, tmp_path)
    assert data.class_names == ("1", "x")
    assert data.validation["label"][:] == [0]


def test_train_limit_is_a_seeded_subset_in_file_order(tmp_path: Path) -> None:
    folder = write(tmp_path, train=rows(*[0, 1] * 50), validation=rows(0, 1))
    whole = load_task(CUSTOM, folder).train["text"][:]
    one, again, other = (
        load_task(CUSTOM, folder, train_limit=20, seed=seed).train["text"][:] for seed in (0, 0, 1)
    )
    assert one == again != other
    assert len(one) == 20
    assert one == [text for text in whole if text in one]


def test_a_train_limit_without_effect_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, train=rows(0, 1), validation=rows(0, 1))
    assert len(load_task(CUSTOM, folder, train_limit=3).train) == 2
    assert "train_limit 3 has no effect" in caplog.text


def test_own_files_without_validation_hold_out_a_tenth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path, train=rows(*[0, 1] * 50))
    data, again = load_task(CUSTOM, folder), load_task(CUSTOM, folder)
    assert (len(data.train), len(data.validation)) == (90, 10)
    assert data.validation["text"][:] == again.validation["text"][:]
    assert not set(data.train["text"]) & set(data.validation["text"])
    assert "10 of 100 training rows are held out" in caplog.text


@pytest.mark.parametrize("test_rows", [rows(-1, -1), [{"text": "t"}], rows(None)])
def test_a_test_split_without_labels_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, test_rows: list[dict[str, Any]]
) -> None:
    caplog.set_level(logging.INFO)
    folder = write(tmp_path, train=rows(0, 1), validation=rows(0, 1), test=test_rows)
    assert load_task(CUSTOM, folder).test is None
    assert "has no labels and is left out" in caplog.text


GOOD = rows(0, 1)
REFUSED: list[tuple[str, dict[str, list[dict[str, Any]]], str]] = [
    ("no train", {"validation": GOOD}, r"has no train split; found: 'validation'\. A folder needs"),
    ("empty", {"train": [], "validation": GOOD}, r"train\.jsonl is empty: no columns and no rows"),
    ("one class", {"train": rows(1, 1), "validation": GOOD}, r"all 2 training labels are '1'"),
    ("unseen label", {"train": GOOD, "validation": rows(0, 7)}, r"never seen in training: '7'"),
    ("hidden train", {"train": rows(0, -1, 1), "validation": GOOD}, r"1 labels of the train split"),
    ("hidden validation", {"train": GOOD, "validation": rows(-1)}, r"are -1, which marks hidden"),
    ("all hidden", {"train": rows(-1, -1), "validation": GOOD}, r"2 labels of the train split"),
    ("none label", {"train": rows(0, None, 1), "validation": GOOD}, r"1 of 3 labels .* row 2"),
    ("nan label", {"train": rows(0.5, float("nan")), "validation": GOOD}, r"1 of 2 labels are"),
    ("infinite", {"train": rows(0.5, float("inf")), "validation": GOOD}, r"row 2: an infinite"),
    ("list label", {"train": rows([1], [0]), "validation": GOOD}, r"row 1: a label of type list"),
    (
        "mixed",
        {"train": rows(1, "a"), "validation": GOOD},
        r"more than one type: 'int' \(row 1\), 'str' \(row 2\)",
    ),
    ("constant", {"train": rows(1.5, 1.5), "validation": rows(2.0)}, r"labels are '1\.5'; there is"),
    ("string score", {"train": rows(1.5, 2.5), "validation": rows("x")}, r"has the label 'x'"),
    ("number", {"train": [{"text": 3, "label": 0}], "validation": GOOD}, r"a text, found int 3"),
    ("no text", {"train": [{"text": None, "label": 0}], "validation": GOOD}, r"1 of 1 texts are"),
    ("column", {"train": [{"txt": "a", "label": 0}]}, r"no column 'text'\. Did you mean 'txt'\?"),
    ("no label", {"train": [{"text": "a", "Label": 0}]}, r"'label'\. Did you mean 'Label'\?"),
]


@pytest.mark.parametrize(("splits", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_bad_data_is_refused(tmp_path: Path, splits: dict[str, list[dict[str, Any]]], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(CUSTOM, write(tmp_path, **splits))


def test_a_subset_of_one_class_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, train=rows(*[0] * 99, 1), validation=rows(0, 1))
    with pytest.raises(TaskError, match="all 2 training labels are '0'"):
        load_task(CUSTOM, folder, train_limit=2)


def test_labels_outside_the_classes_of_a_named_task_are_refused(tmp_path: Path) -> None:
    sentences = [{"sentence": f"s {label}", "label": label} for label in (0, 1, 2)]
    folder = write(tmp_path, train=sentences, validation=sentences[:2])
    with pytest.raises(TaskError, match=r"1 of 3 train labels are not a class of the task: '2'"):
        load_task("sst2", folder)


def test_named_tasks_need_their_own_validation_split(tmp_path: Path) -> None:
    sentences = [{"sentence": f"s {label}", "label": label} for label in (0, 1)]
    with pytest.raises(TaskError, match=r"has no validation split; found: 'train'"):
        load_task("sst2", write(tmp_path, train=sentences))


def test_blank_texts_are_allowed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blank = [{"text": " ", "label": 0}, *rows(1)]
    load_task(CUSTOM, write(tmp_path, train=blank, validation=rows(0, 1)))
    assert "1 of 2 texts are blank" in caplog.text


def test_the_demo_task_needs_no_data() -> None:
    data = load_task("demo/sentiment", sizes={"train": 40, "validation": 10}, seed=3)
    again = load_task("sentiment", sizes={"train": 40, "validation": 10}, seed=3)
    assert (len(data.train), len(data.validation), data.num_labels) == (40, 10, 2)
    assert data.train.to_dict() == again.train.to_dict()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("sst2", {"sizes": {"train": 1}}, "sizes are for generated tasks"),
        ("demo/sentiment", {"sizes": {"dev": 1}}, "unknown splits 'dev'"),
        ("demo/sentiment", {"seed": -1}, "must not be negative"),
        ("demo/sentiment", {"train_limit": 0}, "train_limit must be at least 1"),
        (CUSTOM, {}, "has no data of its own; give a folder"),
    ],
)
def test_impossible_options_are_refused(task: str | TaskSpec, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(task, **options)


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(path: str, config: str, revision: str | None) -> None:
        raise ConnectionError(f"cannot reach {path}/{config}")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(TaskError, match=r"cannot reach nyu-mll/glue/rte\. Give a folder"):
        load_task("rte")


def test_hub_splits_are_found_by_their_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(*labels: int) -> datasets.Dataset:
        names = ("premise", "hypothesis", "label")
        values = (["p"] * len(labels), ["h"] * len(labels), list(labels))
        return datasets.Dataset.from_dict(dict(zip(names, values, strict=True)))

    hub = {
        "train": split(0, 1, 2),
        "validation_matched": split(2),
        "validation_mismatched": split(0, 0),
        "test_matched": split(-1),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config, revision: hub)
    data = load_task("mnli")
    assert data.class_names == ("entailment", "neutral", "contradiction")
    assert data.validation["label"][:] == [2]
    assert data.test is None


SIZES = {
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "stsb": (5749, 1500),
    "wnli": (635, 71),
    "wnut_17": (3394, 1009),
}
CLASSES = {"stsb": 1, "wnut_17": 13}


@pytest.mark.parametrize("name", SIZES)
def test_real_folders_load(data_dir: Path, name: str) -> None:
    data = load_task(name, data_dir / name)
    assert (len(data.train), len(data.validation)) == SIZES[name]
    assert data.num_labels == CLASSES.get(name, 2)
