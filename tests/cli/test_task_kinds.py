"""Every kind of task through the command line: trained, cut, evaluated, used. One is made by the docs."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightpeft.cli.main import main
from lightpeft.tasks import KINDS, TaskError, find_kind
from lightpeft.tasks.kinds.kind import TaskKind

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A kind of task on data of its own."""

    objective: str
    example: Callable[[int], Record]
    """A training row by its number."""

    options: Sequence[str]
    metrics: set[str]
    lines: Sequence[str]
    answer: Callable[[Record, str], bool]
    """Whether an answer is one for a line."""


def _sentence(number: int) -> str:
    return f"the {('plot', 'coffee', 'screen')[number % 3]} was {('good', 'bad')[number % 2]} {number}"


def _is_class(answer: Record, _line: str) -> bool:
    return answer["label"] in ("bad", "good") and 0.5 <= answer["probability"] <= 1


def _is_tagged(answer: Record, line: str) -> bool:
    tags = answer["tags"]
    return answer["words"] == line.split() == line.split()[: len(tags)] and set(tags) <= {"B-X", "I-X", "O"}


def _question(number: int) -> Record:
    """Every fifth without an answer; contexts longer than a window."""
    context = " ".join(_sentence(number + i) for i in range(12 if number % 2 else 2))
    answer = ("plot", "coffee", "screen")[number % 3]
    label = {"text": [answer], "answer_start": [context.index(answer)]}
    return {
        "question": f"what was {('good', 'bad')[number % 2]}",
        "context": context,
        "label": label if number % 5 else {"text": [], "answer_start": []},
    }


ROWS = {
    "classes": Row(
        "sequence-classification",
        lambda i: {"text": _sentence(i), "label": ("good", "bad")[i % 2]},
        ["--text", "text"],
        {"accuracy", "macro_f1"},
        ["the plot was good", ""],
        _is_class,
    ),
    "numbers of pairs": Row(
        "sequence-classification",
        lambda i: {"a": _sentence(i), "b": _sentence(i + 1), "label": i / 7},
        ["--text", "[a, b]"],
        {"pearson", "spearman"},
        ["the plot\tthe coffee"],
        lambda answer, _: isinstance(answer["value"], float),
    ),
    "several classes": Row(
        "multi-label-classification",
        lambda i: {"text": _sentence(i), "label": [name for j, name in enumerate("abc") if i >> j & 1]},
        ["--text", "text"],
        {"micro_f1", "macro_f1", "exact_match"},
        ["the plot was good", ""],
        lambda answer, _: set(answer["labels"]) <= set(answer["probabilities"]) == set("abc"),
    ),
    "tags": Row(
        "token-classification",
        lambda i: {"tokens": _sentence(i).split(), "tags": ["O", "B-X", "I-X", "O", "O"]},
        ["--text", "tokens", "--label", "tags"],
        {"f1", "precision", "recall", "accuracy"},
        ["the plot was good", "", "bad"],
        _is_tagged,
    ),
    "choices in columns": Row(
        "multiple-choice",
        lambda i: {"start": _sentence(i), "x": "good", "y": "bad", "label": i % 2},
        ["--text", "[start, x, y]"],
        {"accuracy"},
        ["the plot was\tgood\tbad"],
        lambda answer, line: line.split("\t")[answer["choice"] + 1] == answer["text"],
    ),
    "choices in lists": Row(
        "multiple-choice",
        lambda i: {"start": _sentence(i), "ends": ["good", "bad", "so so"], "label": str(i % 3)},
        ["--text", "[start, ends]"],
        {"accuracy"},
        ["the plot was\tgood\tbad\tnever", "the coffee\ta\tb\tc"],
        lambda answer, line: line.split("\t")[answer["choice"] + 1] == answer["text"],
    ),
    "answers": Row(
        "question-answering",
        _question,
        [],
        {"exact_match", "f1", "best_exact_match", "best_f1"},
        ["what was good\tthe plot was good and the coffee was bad"],
        lambda answer, line: answer["answer"] in line and isinstance(answer["no_answer_margin"], float),
    ),
    "stars, by the docs": Row(
        "stars",
        lambda i: {"text": _sentence(i), "label": f"{i % 4 + 1} star{'s' * (i % 4 > 0)}"},
        [],
        {"exact", "error"},
        ["the plot was good", "bad"],
        lambda answer, _: answer["stars"] in range(1, 6),
    ),
}


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The kind of the docs, as its file and its row."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = next(block for block in blocks if "class Stars(TaskKind)" in block)
    row = next(block for block in blocks if block.startswith('"stars": '))
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "stars_of_the_docs.py").write_text(module, encoding="utf-8")
    name, path = re.fullmatch(r'"(.*)": "(.*)",\n', row).groups()  # type: ignore[union-attr]
    assert path == f"lightpeft.tasks.kinds.{name}"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setitem(KINDS, name, "stars_of_the_docs")
        yield


def write(folder: Path, example: Callable[[int], Record]) -> Path:
    folder.mkdir()
    for split, numbers in (("train", range(48)), ("validation", range(100, 112))):
        lines = "".join(json.dumps(example(number)) + "\n" for number in numbers)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


OTHER_FORMS = [(name, "parallel") for name in ("several classes", "tags", "answers")] + [
    ("tags", "sequential")
]


@pytest.mark.usefixtures("stars")
@pytest.mark.parametrize(("name", "form"), [(name, "lora") for name in ROWS] + OTHER_FORMS)
def test_a_kind_is_trained_evaluated_and_used(
    name: str, form: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, out = ROWS[name], tmp_path / "out"
    data = write(tmp_path / "data", row.example)
    quick = ["--estimation.steps", "4", "--training.max_steps", "9", "--training.batch_size", "8"]
    quick += ["--training.max_length", "32"]
    task = ["--task", "own", "--data", str(data), "--objective", row.objective, *row.options]
    quick += ["--peft", form]
    assert main(["train", "--model", str(tiny_model), "--out", str(out), *task, *quick, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(out), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert set(metrics) - {"loss"} == row.metrics | {"main"}
    assert metrics["main"] == pytest.approx(result["light"]["metric"], abs=1e-6)

    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(row.lines) + "\n", encoding="utf-8")
    assert main(["predict", str(out), str(texts)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == len(row.lines)
    assert all(map(row.answer, answers, row.lines))


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_the_name_of_its_row(name: str) -> None:
    kind = find_kind(name)
    assert isinstance(kind, TaskKind)
    assert kind.name == name
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")


def test_an_unknown_objective_names_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"unknown objective 'token-clasification'\. Did you mean 'token-"):
        find_kind("token-clasification")


def test_bad_values_of_the_docs_kind_are_named(stars: None, tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data", lambda i: {"text": _sentence(i), "label": "9 stars"})
    task = ["--task", "own", "--data", str(data), "--objective", "stars"]
    assert main(["train", "--model", str(tiny_model), "--out", str(tmp_path / "out"), *task]) == 1


VERBS = [["train"], ["estimate"], ["bench", "speed"], ["bench", "run"]]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_an_objective_that_is_none_lists_them_all(
    verb: list[str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", ROWS["classes"].example)
    options = ["--model", str(tiny_model), "--task", "own", "--data", str(data), "--text", "text"]
    options += ["--out", str(tmp_path / "out")]
    assert main([*verb, "--objective", "?", *options]) == 2
    told = capsys.readouterr().err
    assert [name for name in KINDS if repr(name) not in told] == []
