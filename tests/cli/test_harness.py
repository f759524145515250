"""`evaluate --harness`: lm-evaluation-harness asks light and merged models, and its numbers are right."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tests.support.language import POSITIONS, WORDS, save_language_model, sentences, write_texts
from transformers import AutoTokenizer

import lightpeft
from lightpeft.anatomy import find_anatomy
from lightpeft.checkpoint import load_merged
from lightpeft.cli import checkpoints
from lightpeft.cli.main import main
from lightpeft.runs import generate_texts

Row = dict[str, Any]
Score = dict[str, Any]
QUESTIONS = 40
CHOOSE: Row = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ],
}
READ: Row = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    ],
}
WRITE: Row = {
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"max_gen_toks": 4, "do_sample": False, "until": ["."]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def question(number: int) -> Row:
    """Of choices of different lengths, so that sums and means of log-likelihoods choose differently."""
    texts = sentences(4, seed=100 + number)
    choices = [" ".join(text.split()[:length]) for text, length in zip(texts[1:], (1, 2, 3), strict=True)]
    return {"question": texts[0], "choices": choices, "answer": number % 3}


def write_task(folder: Path, name: str, task: Row, rows: list[Row]) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"validation": str(data)},
            "cache_dir": str(folder.parent / "datasets"),
        },
        "validation_split": "validation",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(own | task), encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A light run of a random llama."""
    model = save_language_model("llama", tmp_path_factory.mktemp("llama"))
    texts = write_texts(tmp_path_factory.mktemp("texts"), sentences(80), sentences(10, seed=1))
    out = tmp_path_factory.mktemp("run") / "out"
    words = ["train", "--model", str(model), "--task", "mine", "--data", str(texts), "--out", str(out)]
    quick = ["--estimation.steps", "4", "--training.max_steps", "10", "--budget.heads", "0.5"]
    quick += ["--training.batch_size", "8"]
    assert main([*words, "--objective", "causal-lm", *quick, "--training.max_length", "16"]) == 0
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> Any:
    loaded = lightpeft.load(run / "light")
    assert any(layer.heads < 4 for layer in find_anatomy(loaded).layers)
    return loaded


@pytest.fixture(scope="module")
def tokenizer(run: Path) -> Any:
    return AutoTokenizer.from_pretrained(run / "light")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, model: Any, tokenizer: Any) -> Path:
    """A folder of task files: questions, texts to read, prompts of which every second is answered right."""
    folder = tmp_path_factory.mktemp("harness") / "tasks"
    folder.mkdir()
    questions = [question(number) for number in range(QUESTIONS)]
    write_task(folder, "choose", CHOOSE, questions)
    write_task(folder, "examples", CHOOSE | {"fewshot_split": "validation"}, questions[:6])
    write_task(folder, "no_examples", CHOOSE | {"num_fewshot": 0}, questions[:6])
    long = " ".join(WORDS[number % len(WORDS)] for number in range(POSITIONS + 10))
    write_task(folder, "too_long", CHOOSE, [questions[0] | {"question": long}] * 2)
    write_task(folder, "read", READ, [{"text": text} for text in sentences(20, seed=7)])
    prompts = sentences(8, seed=9)
    right = [one["completion"] for one in generate_texts(model, tokenizer, prompts, 4, batch_size=8)]
    answers = [answer if number % 2 else "wrong" for number, answer in enumerate(right)]
    pairs = zip(prompts, answers, strict=True)
    write_task(folder, "write", WRITE, [{"prompt": prompt, "answer": answer} for prompt, answer in pairs])
    write_task(folder, "broken", CHOOSE, [])
    write_task(folder, "unsafe", CHOOSE | {"unsafe_code": True}, questions[:2])
    return folder


@pytest.fixture
def asked(tasks: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Score]]:
    """What `evaluate --harness` prints as JSON, by task and metric; and nothing else."""

    def ask(checkpoint: Path, names: str, *more: str) -> dict[str, Score]:
        capfd.readouterr()
        words = ["evaluate", str(checkpoint), "--harness", names, "--harness-tasks", str(tasks), "--json"]
        assert main([*words, *more]) == 0
        found = json.loads(capfd.readouterr().out)
        return {f"{one['task']} {one['metric']}": one for one in found["scores"]}

    return ask


def log_likelihood(model: Any, ids: list[int], first: int) -> float:
    """Of the tokens from `first` on, each behind all before it: one text, no batch, no padding."""
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logs[place - 1, ids[place]]) for place in range(first, len(ids)))


def own_choices(model: Any, tokenizer: Any) -> dict[str, list[float]]:
    """Whether each question is answered right, by log-likelihood and by log-likelihood per character."""
    right: dict[str, list[float]] = {"acc": [], "acc_norm": []}
    for row in map(question, range(QUESTIONS)):
        start = len(tokenizer(row["question"])["input_ids"])
        texts = [f"{row['question']} {choice}" for choice in row["choices"]]
        sums = np.array([log_likelihood(model, tokenizer(text)["input_ids"], start) for text in texts])
        lengths = np.array([len(choice) for choice in row["choices"]])
        right["acc"].append(float(sums.argmax() == row["answer"]))
        right["acc_norm"].append(float((sums / lengths).argmax() == row["answer"]))
    return right


def own_word_perplexity(model: Any, tokenizer: Any) -> float:
    """The harness puts BOS before each text, whether the tokenizer does or not."""
    total, words = 0.0, 0
    for text in sentences(20, seed=7):
        ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
        total += log_likelihood(model, ids, 1)
        words += len(text.split())
    return math.exp(-total / words)


def test_our_own_choices_by_likelihood_have_the_scores_of_the_harness(
    tmp_path: Path, asked: Callable[..., dict[str, Score]], capfd: pytest.CaptureFixture[str]
) -> None:
    """`causal-multiple-choice`, trained and evaluated on the questions that the harness asks then."""
    model, data = save_language_model("llama", tmp_path / "llama"), tmp_path / "data"
    data.mkdir()
    rows = "".join(json.dumps(question(number)) + "\n" for number in range(QUESTIONS))
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    words = [
        "train",
        "--model",
        str(model),
        "--task",
        "mine",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
    ]
    words += ["--objective", "causal-multiple-choice", "--text", "question,choices", "--label", "answer"]
    quick = ["--estimation.steps", "4", "--training.max_steps", "10", "--budget.heads", "0.5"]
    assert main([*words, *quick, "--training.max_length", "32"]) == 0
    capfd.readouterr()
    assert main(["evaluate", str(tmp_path / "out"), "--json"]) == 0
    own = json.loads(capfd.readouterr().out)
    found = asked(tmp_path / "out", "choose")
    assert own["accuracy"] == pytest.approx(found["choose acc"]["value"], abs=1e-6)
    assert own["accuracy_norm"] == pytest.approx(found["choose acc_norm"]["value"], abs=1e-6)
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat sees\ta tree\tthe dog\n", encoding="utf-8")
    assert main(["predict", str(tmp_path / "out"), str(texts)]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["text"] == ["a tree", "the dog"][answer["choice"]]


@pytest.mark.parametrize("batch_size", ["1", "8"])
def test_scores_are_those_of_our_own_log_likelihoods(
    batch_size: str, run: Path, model: Any, tokenizer: Any, asked: Callable[..., dict[str, Score]]
) -> None:
    found = asked(run, "choose,read", "--batch-size", batch_size)
    right = own_choices(model, tokenizer)
    assert right["acc"] != right["acc_norm"]
    for metric, answers in right.items():
        score = found[f"choose {metric}"]
        assert score["value"] == pytest.approx(np.mean(answers), abs=1e-6)
        assert score["stderr"] == pytest.approx(np.std(answers, ddof=1) / QUESTIONS**0.5, abs=1e-6)
        assert (score["questions"], score["shots"]) == (QUESTIONS, 0)
    score = found["read word_perplexity"]
    assert score["value"] == pytest.approx(own_word_perplexity(model, tokenizer), rel=1e-6)
    assert score["stderr"] is None


def test_the_merged_model_has_the_same_scores_in_the_harness_alone(
    run: Path, tasks: Path, tokenizer: Any, tmp_path: Path, asked: Callable[..., dict[str, Score]]
) -> None:
    merged = tmp_path / "merged"
    assert main(["export", str(run), "--to", "merged", "--out", str(merged)]) == 0
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    alone = HFLM(pretrained=load_merged(merged), tokenizer=tokenizer, batch_size=4)
    results = simple_evaluate(alone, tasks=["choose", "read"], task_manager=manager)["results"]
    for checkpoint in (run, merged):
        found = asked(checkpoint, "choose,read")
        for metric in ("acc", "acc_norm"):
            assert found[f"choose {metric}"]["value"] == results["choose"][f"{metric},none"]
            assert found[f"choose {metric}"]["stderr"] == results["choose"][f"{metric}_stderr,none"]
        expected = results["read"]["word_perplexity,none"]
        assert found["read word_perplexity"]["value"] == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_without_a_task_is_asked_too(
    run: Path, model: Any, tokenizer: Any, tmp_path: Path, asked: Callable[..., dict[str, Score]]
) -> None:
    saved = lightpeft.save(model, tmp_path / "saved", tokenizer=tokenizer)
    assert asked(saved, "choose") == asked(run, "choose")


def test_what_the_model_writes_is_scored(run: Path, asked: Callable[..., dict[str, Score]]) -> None:
    assert asked(run, "write")["write exact_match"]["value"] == 0.5


def test_limit_and_examples(
    run: Path, asked: Callable[..., dict[str, Score]], caplog: pytest.LogCaptureFixture
) -> None:
    assert asked(run, "choose", "--limit", "5")["choose acc"]["questions"] == 5
    found = asked(run, "examples,no_examples", "--num-fewshot", "2")
    assert (found["examples acc"]["shots"], found["no_examples acc"]["shots"]) == (2, 0)
    assert "num_fewshot has no effect on 'no_examples'" in caplog.text


def test_texts_that_are_too_long_are_told_once(
    run: Path, asked: Callable[..., dict[str, Score]], caplog: pytest.LogCaptureFixture
) -> None:
    asked(run, "too_long")
    told = [record.getMessage() for record in caplog.records if "lm-eval warned" in record.getMessage()]
    assert len(told) == 1
    assert "exceeds model's maximum length" in told[0]


def test_the_terminal_has_the_table_alone(run: Path, tasks: Path) -> None:
    words = ["evaluate", str(run), "--harness", "choose", "--harness-tasks", str(tasks), "--limit", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "lightpeft", *words], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "lm-evaluation-harness" in lines[0]
    assert "5 questions a task at most" in lines[-1]
    assert sum("choose" in line and "acc" in line for line in lines) == 2
    assert len(lines) == 8


REFUSED = [
    (["--harness", "[]"], 2, "harness names no task"),
    (["--harness", ""], 2, "has an empty name in it"),
    (["--harness", "choose", "--limit", "0"], 2, "limit is 0; give at least 1"),
    (["--harness", "choose", "--num-fewshot", "-1"], 2, "num_fewshot is -1; give at least 0"),
    (["--harness", "choose", "--batch-size", "0"], 2, "batch_size is 0; give at least 1"),
    (["--harness", "choose", "--data", "."], 2, "data has no effect with harness"),
    (["--harness", "choose", "--harness-tasks", "nowhere"], 2, "which is no folder"),
    (["--harness", "broken"], 2, "'broken' of lm-eval cannot be loaded with its data"),
    (["--harness", "unsafe"], 2, "runs code that the model writes"),
    (["--limit", "5"], 2, "limit has no effect without harness"),
]


@pytest.mark.parametrize(("options", "status", "fragment"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refused_before_a_model_is_loaded(
    options: list[str],
    status: int,
    fragment: str,
    run: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refuse(monkeypatch)
    has_folder = "--harness-tasks" in options or "--harness" not in options
    own = [] if has_folder else ["--harness-tasks", str(tasks)]
    capsys.readouterr()
    assert main(["evaluate", str(run), *options, *own]) == status
    assert fragment in capsys.readouterr().err


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no model be loaded."""

    def fail(*given: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(checkpoints, "load", fail)
    monkeypatch.setattr(checkpoints, "load_merged", fail)


def test_an_unknown_task_is_refused_with_the_nearest_name(
    run: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch)
    words = ["--harness", "arc_eazy", "--harness-tasks", str(tasks)]
    assert main(["evaluate", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert "'arc_eazy' is no task, group or tag of lm-eval" in error
    assert "Did you mean 'arc_easy'?" in error


def test_the_package_is_asked_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch)
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    assert main(["evaluate", str(run), "--harness", "choose"]) == 2
    assert 'pip install "lightpeft[harness]"' in capsys.readouterr().err


def test_a_classifier_is_refused(
    finished_run: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch)
    words = ["--harness", "choose", "--harness-tasks", str(tasks)]
    assert main(["evaluate", str(finished_run), *words]) == 2
    assert "the harness's tasks are for causal language models" in capsys.readouterr().err
