"""Answers found in contexts: windows, places, and the scores of the official SQuAD scripts."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tests.support.tokenizers import pieces
from transformers import EvalPrediction

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks import (
    Evaluated,
    TaskError,
    compute_metrics_for,
    custom_task,
    find_kind,
    find_task,
    load_task,
)
from lightpeft.tasks.kinds.question_answering import Answer, exact_match, normalized, token_f1

OBJECTIVE = "question-answering"
KIND = find_kind(OBJECTIVE)
OWN = custom_task(("question", "context"), objective=OBJECTIVE)
CONTEXT = "ann lee went to rome , usa"


def row(question: str, context: str, *answers: str) -> dict[str, Any]:
    starts = [context.index(answer) for answer in answers]
    return {
        "question": question,
        "context": context,
        "label": {"text": list(answers), "answer_start": starts},
    }


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def split_of(*rows: dict[str, Any]) -> Dataset:
    return Dataset.from_dict(
        {
            "text": [one["question"] for one in rows],
            "text_pair": [one["context"] for one in rows],
            "label": [one["label"] for one in rows],
        },
        features=load_features(),
    )


def load_features() -> Any:
    from datasets import Features, Value

    return Features({"text": Value("string"), "text_pair": Value("string")} | KIND.types(OWN))


def outputs_for(split: Dataset, features: Dataset, *, silent: tuple[int, ...] = ()) -> np.ndarray:
    """Logits that find the first right answer wherever it is, and prefer none for the rows in `silent`."""
    width = max(map(len, features["input_ids"]))
    logits = np.full((len(features), width, 2), -5.0)
    for window, (start, end, none) in enumerate(
        zip(features["start_positions"], features["end_positions"], features["silence"], strict=True)
    ):
        logits[window, start, 0] = logits[window, end, 1] = 3.0
        if features["example"][window] in silent:
            logits[window, none] = 9.0
    return logits


@pytest.mark.parametrize(
    ("text", "same"),
    [("The  Cat!", "cat"), ("an  apple, a day", "apple day"), ("theory", "theory"), ("U.S.A.", "usa")],
)
def test_answers_are_compared_as_squad_does(text: str, same: str) -> None:
    assert normalized(text) == same


@pytest.mark.parametrize(
    ("gold", "found", "exact", "f1"),
    [
        ("the cat sat", "cat sat", 1.0, 1.0),
        ("the cat sat", "a cat stood there", 0.0, 2 * 1 / (2 + 3)),
        ("cat cat dog", "cat dog dog", 0.0, 2 * 2 / 6),
        ("", "", 1.0, 1.0),
        ("the", "", 1.0, 1.0),
        ("cat", "", 0.0, 0.0),
        ("", "cat", 0.0, 0.0),
    ],
)
def test_exact_match_and_f1_by_hand(gold: str, found: str, exact: float, f1: float) -> None:
    assert exact_match(gold, found) == exact
    assert token_f1(gold, found) == pytest.approx(f1)


def metrics(gold: list[list[str]], answers: list[Answer]) -> dict[str, float]:
    return {name: metric(gold, answers) for name, metric in KIND.metrics.items()}


def test_the_best_of_several_right_answers_counts() -> None:
    gold = [["rome", "in rome"], ["the cat"]]
    found = [Answer("in rome", -1.0), Answer("dog", 5.0)]
    assert metrics(gold, found) == pytest.approx(
        {"exact_match": 0.5, "f1": 0.5, "best_exact_match": 0.5, "best_f1": 0.5}
    )


def test_no_answer_counts_where_there_is_none() -> None:
    """At a margin of 0 the second and the third are told wrongly; at 2.5 only the third is."""
    gold: list[list[str]] = [["rome"], ["rome"], [], []]
    found = [Answer("rome", -3.0), Answer("rome", 2.0), Answer("cat", -1.0), Answer("cat", 4.0)]
    assert metrics(gold, found) == pytest.approx(
        {"exact_match": 0.5, "f1": 0.5, "best_exact_match": 0.75, "best_f1": 0.75}
    )


def test_every_question_has_an_answer_in_squad_1() -> None:
    """A margin for no answer means nothing there: what was found is told."""
    assert metrics([["rome"]], [Answer("rome", 7.0)])["exact_match"] == 1.0


def reference_best(gold: list[list[str]], found: list[Answer], measure: Any) -> float:
    """Every threshold tried, as the official script's search over them."""
    best = 0.0
    for threshold in [-np.inf, *(answer.margin for answer in found)]:
        told = [answer.text if answer.margin <= threshold else "" for answer in found]
        scores = [max(measure(g, t) for g in (gs or [""])) for gs, t in zip(gold, told, strict=True)]
        best = max(best, float(np.mean(scores)))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_best_of_all(seed: int) -> None:
    draw = np.random.default_rng(seed)
    words = ["red cat", "cat", "old dog", "the red dog", ""]
    gold = [[words[i] for i in draw.integers(0, 4, draw.integers(0, 3))] for _ in range(40)]
    found = [Answer(words[draw.integers(0, 4)], float(draw.normal())) for _ in range(40)]
    scores = metrics(gold, found)
    assert scores["best_exact_match"] == pytest.approx(reference_best(gold, found, exact_match))
    assert scores["best_f1"] == pytest.approx(reference_best(gold, found, token_f1))


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("length", [12, 16, 64])
def test_what_was_learned_is_what_is_found(special: bool, length: int) -> None:
    """The places of answers in windows, read back: every text is its answer's, in long and short contexts."""
    long = f"{CONTEXT} " * 5 + "to me"
    split = split_of(row("who", CONTEXT, "ann lee", "ann"), row("what", long, "to me"), row("why", CONTEXT))
    tokenizer = pieces(special=special)
    features = KIND.encode(split, tokenizer, TrainingConfig(max_length=length))
    assert max(map(len, features["input_ids"])) <= length
    assert set(features["example"]) == {0, 1, 2}
    outputs = outputs_for(split, features, silent=(2,))
    answers = KIND.answers(OWN, Evaluated(outputs, None, split, features))
    assert [answer["answer"] for answer in answers[:2]] == ["ann lee", "to me"]
    assert answers[2]["no_answer_margin"] > 0
    scores = compute_metrics_for(load_task_spec(), split, features)(EvalPrediction(outputs, ()))
    assert scores["exact_match"] == scores["main"] == 1.0


def load_task_spec() -> Any:
    from lightpeft.tasks.metrics import with_metrics

    return with_metrics(OWN)


def test_windows_share_tokens_and_cover_the_context() -> None:
    words = " ".join(["ann", "lee", "went", "to", "rome"] * 8)
    split = split_of(row("who", words, "ann"))
    features = KIND.encode(split, pieces(special=True), TrainingConfig(max_length=16))
    seen = [np.array(offsets).reshape(-1, 2) for offsets in features["offsets"]]
    spans = [(part[part[:, 1] > 0][0, 0], part[part[:, 1] > 0][-1, 1]) for part in seen]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(words)
    assert all(later[0] < earlier[1] for earlier, later in pairwise(spans))


def test_a_long_question_leaves_room_for_the_context() -> None:
    split = split_of(row("ann " * 50, CONTEXT, "rome"))
    features = KIND.encode(split, pieces(special=True), TrainingConfig(max_length=16))
    assert max(map(len, features["input_ids"])) <= 16
    answers = KIND.answers(OWN, Evaluated(outputs_for(split, features), None, split, features))
    assert answers[0]["answer"] == "rome"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("rome", "row 1, column 'label': expected answers like"),
        ({"text": ["rome"]}, "expected answers like"),
        ({"text": ["rome"], "answer_start": []}, "expected answers like"),
        ({"text": ["rome"], "answer_start": [3]}, r"the context has ' lee' at 3, and not 'rome'"),
        ({"text": ["rome"], "answer_start": [-4]}, "and not 'rome'"),
        ({"text": [""], "answer_start": [0]}, "is no answer"),
        ({"text": ["rome"], "answer_start": ["16"]}, "is no answer"),
        ({"text": [], "answer_start": []}, "no training question has an answer"),
    ],
)
def test_what_cannot_be_learned_is_refused(label: Any, message: str, tmp_path: Path) -> None:
    one = {"question": "where", "context": CONTEXT, "label": label}
    with pytest.raises(TaskError, match=message):
        load_task(OWN, write(tmp_path, train=[one], validation=[row("who", CONTEXT, "ann")]))


def test_a_test_split_without_answers_is_left_out(tmp_path: Path) -> None:
    one = row("who", CONTEXT, "ann")
    hidden = {name: one[name] for name in ("question", "context")}
    assert load_task(OWN, write(tmp_path, train=[one], validation=[one], test=[hidden])).test is None


def test_scoring_needs_what_is_scored() -> None:
    with pytest.raises(TaskError, match="give compute_metrics_for the split"):
        compute_metrics_for(OWN)(EvalPrediction(np.zeros((1, 2, 2)), ()))


def test_real_squad_loads(data_dir: Path) -> None:
    data = load_task(find_task("squad"), data_dir / "squad_subset")
    assert (len(data.train), len(data.validation)) == (4000, 500)
    assert data.spec.main == ("f1",)
