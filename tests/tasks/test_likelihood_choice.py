"""Choices by likelihood: what is learned, what is judged, and what counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.support.language import EOS, VOCABULARY, WORDS, save_language_model, word_tokenizer
from transformers import AutoModelForCausalLM, EvalPrediction, PreTrainedTokenizerBase

from lightpeft.errors import AnatomyError
from lightpeft.run_config import TrainingConfig
from lightpeft.runs.models import check_architecture
from lightpeft.tasks import TaskError, compute_metrics_for, custom_task, find_kind
from lightpeft.tasks.metrics import with_metrics

KIND = find_kind("causal-multiple-choice")
SPEC = with_metrics(custom_task(("text", "choices"), objective=KIND.name))
SPLIT = Dataset.from_dict(
    {
        "text": ["the cat sees ", "a dog"],
        "choices": [["the tree", "a small red house"], ["likes", "hears the bird"]],
        "label": [1, 0],
    }
)
TRAINING = TrainingConfig(max_length=16)


def words(ids: list[int]) -> str:
    names = {number: word for word, number in VOCABULARY.items()}
    return " ".join(names[one] for one in ids if one >= 0)


@pytest.mark.parametrize("bos", [True, False])
def test_the_right_choice_is_learned_and_every_choice_judged(bos: bool) -> None:
    tokenizer = word_tokenizer(bos=bos)
    learned = KIND.features(SPLIT, tokenizer, TRAINING)
    start = "<s> " if bos else ""
    assert [words(ids) for ids in learned["input_ids"]] == [
        f"{start}the cat sees a small red house {EOS}",
        f"{start}a dog likes {EOS}",
    ]
    assert [words(ids) for ids in learned["labels"]] == [f"a small red house {EOS}", f"likes {EOS}"]
    judged = KIND.features(SPLIT, tokenizer, TRAINING, judged=True)
    assert [words(ids) for ids in judged["labels"]] == [
        *("the tree", "a small red house", "likes", "hears the bird")
    ]


def test_a_prompt_without_tokens_gets_one_to_predict_from() -> None:
    split = Dataset.from_dict({"text": [" "], "choices": [["the tree", "a"]], "label": [0]})
    for bos in (True, False):
        judged = KIND.features(split, word_tokenizer(bos=bos), TRAINING, judged=True)
        assert [words(ids) for ids in judged["input_ids"]] == ["<s> the tree", "<s> a"]
        assert [words(ids) for ids in judged["labels"]] == ["the tree", "a"]


def test_a_long_context_loses_its_beginning() -> None:
    long = " ".join(WORDS * 3)
    split = Dataset.from_dict({"text": [long], "choices": [["the tree", "a"]], "label": [0]})
    judged = KIND.features(split, word_tokenizer(), TRAINING, judged=True)
    assert [len(ids) for ids in judged["input_ids"]] == [16, 16]
    assert [words(ids) for ids in judged["labels"]] == ["the tree", "a"]


def test_a_choice_without_tokens_is_refused() -> None:
    split = Dataset.from_dict({"text": ["the cat"], "choices": [["", "a"]], "label": [0]})
    with pytest.raises(TaskError, match="the choice '' adds no token to its context 'the cat'"):
        KIND.features(split, word_tokenizer(), TRAINING, judged=True)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PreTrainedTokenizerBase]:
    folder = save_language_model("llama", tmp_path_factory.mktemp("llama"))
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


def test_the_sum_over_the_tokens_of_a_choice_counts(judge: tuple[Any, PreTrainedTokenizerBase]) -> None:
    """In padded batches as for one text after the other."""
    model, tokenizer = judge
    judged = KIND.features(SPLIT, tokenizer, TRAINING, judged=True)
    batch = KIND.collator(tokenizer)([judged[row] for row in range(4)])
    labels = batch.pop("labels")
    with torch.inference_mode():
        outputs = KIND.outputs(model, batch, labels).numpy()
        expected = [_log_likelihood(model, judged[row]) for row in range(4)]
    assert -outputs[:, 0] == pytest.approx(expected, abs=1e-4)


def _log_likelihood(model: Any, row: dict[str, list[int]]) -> float:
    logs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
    pairs = enumerate(row["labels"])
    return sum(float(logs[place - 1, label]) for place, label in pairs if label >= 0)


def test_accuracy_is_by_sums_and_accuracy_norm_by_characters() -> None:
    losses = np.array([[5.0, 2], [9.0, 4], [3.0, 1], [6.0, 3]])  # 8 and 17 characters, 5 and 14
    scores = compute_metrics_for(SPEC, SPLIT)(EvalPrediction(losses, np.zeros((4, 1))))
    # By sums choices 0 and 0, per character (5/8, 9/17), (3/5, 6/14) choices 1 and 1; 1 and 0 are right.
    assert scores == {"accuracy": 0.5, "accuracy_norm": 0.5, "main": 0.5}
    only = SPLIT.select([0])
    scores = compute_metrics_for(SPEC, only)(EvalPrediction(losses[:2], np.zeros((2, 1))))
    assert scores == {"accuracy": 0.0, "accuracy_norm": 1.0, "main": 0.0}


def test_a_decoder_is_told_to_take_it(tmp_path: Path) -> None:
    name = str(save_language_model("llama", tmp_path))
    check_architecture(name, KIND)
    with pytest.raises(
        AnatomyError, match="has no head for multiple-choice; take --objective causal-multiple"
    ):
        check_architecture(name, find_kind("multiple-choice"))
