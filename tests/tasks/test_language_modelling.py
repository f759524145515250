"""Language modelling: which tokens are learned, padded and packed rows, and the exact loss."""

import itertools
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.support.language import BOS, EOS, POSITIONS, VOCABULARY, sentences, word_tokenizer, write_texts
from transformers import DataCollatorForSeq2Seq, EvalPrediction

from lightpeft.tasks import (
    TaskError,
    TaskSpec,
    compute_metrics_for,
    custom_task,
    encode_language,
    load_task,
    token_losses,
)

TEXT = custom_task(("text",), objective="causal-lm")
PAIR = custom_task(("prompt", "completion"), objective="causal-lm")


def ids(text: str) -> list[int]:
    return [VOCABULARY[word] for word in text.split()]


def one(text: str, completion: str | None = None) -> Dataset:
    pair = {} if completion is None else {"text_pair": [completion]}
    return Dataset.from_dict({"text": [text]} | pair)


def test_every_token_of_a_text_and_its_end_are_learned() -> None:
    encoded = encode_language(one("the cat sees"), word_tokenizer(), 16)
    assert encoded["input_ids"][:] == [ids(f"{BOS} the cat sees {EOS}")]
    assert encoded["labels"][:] == encoded["input_ids"][:]
    assert encoded["attention_mask"][:] == [[1] * 5]


def test_only_the_completion_is_learned() -> None:
    encoded = encode_language(one("the cat", "sees a dog"), word_tokenizer(), 16)
    assert encoded["input_ids"][:] == [ids(f"{BOS} the cat sees a dog {EOS}")]
    assert encoded["labels"][:] == [[-100] * 3 + ids(f"sees a dog {EOS}")]


@pytest.mark.parametrize("completion", [None, "sees"])
def test_a_tokenizer_that_ends_texts_itself_ends_them_once(completion: str | None) -> None:
    encoded = encode_language(one("the cat", completion), word_tokenizer(template_eos=True), 16)
    assert encoded["input_ids"][0] == ids(f"{BOS} the cat {completion or ''} {EOS}")


def test_a_long_text_loses_its_end_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    data = Dataset.from_dict({"text": ["the cat sees a dog", "the cat"]})
    encoded = encode_language(data, word_tokenizer(), 4)
    assert encoded["input_ids"][:] == [ids(f"{BOS} the cat sees"), ids(f"{BOS} the cat {EOS}")]
    assert "1 of 2 texts have more than 4 tokens and are cut" in caplog.text


@pytest.mark.parametrize(
    ("max_length", "kept"),
    [
        (8, f"{BOS} the small old cat sees dog {EOS}"),
        (7, f"{BOS} small old cat sees dog {EOS}"),
        (4, f"{BOS} sees dog {EOS}"),
        (3, f"{BOS} sees dog"),
    ],
)
def test_a_long_prompt_loses_its_first_words_before_the_completion_loses_any(
    max_length: int, kept: str
) -> None:
    encoded = encode_language(one("the small old cat", "sees dog"), word_tokenizer(), max_length)
    assert encoded["input_ids"][:] == [ids(kept)]
    learned = [token for token in encoded["labels"][0] if token != -100]
    assert learned == ids(f"sees dog {EOS}")[: len(learned)]
    assert len(learned) >= 2


def test_a_prompt_without_special_tokens_keeps_its_last_word() -> None:
    encoded = encode_language(one("the small cat", "sees dog"), word_tokenizer(bos=False), 3)
    assert encoded["input_ids"][:] == [ids("cat sees dog")]


def test_rows_with_nothing_to_predict_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    data = Dataset.from_dict({"text": ["", "the cat", " "]})
    encoded = encode_language(data, word_tokenizer(bos=False), 8)
    assert encoded["input_ids"][:] == [ids(f"the cat {EOS}")]
    assert "2 rows have no token to learn" in caplog.text


@pytest.mark.parametrize("max_length", [2, 7, 16])
def test_packed_rows_hold_every_token_once_and_in_order(
    max_length: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lightpeft")
    texts = sentences(2345)
    encoded = encode_language(Dataset.from_dict({"text": texts}), word_tokenizer(), max_length, packing=True)
    joined = list(itertools.chain.from_iterable(ids(f"{BOS} {text} {EOS}") for text in texts))
    whole = len(joined) // max_length * max_length
    assert {len(row) for row in encoded["input_ids"][:]} == {max_length}
    assert list(itertools.chain.from_iterable(encoded["input_ids"][:])) == joined[:whole]
    assert encoded["labels"][:] == encoded["input_ids"][:]
    if whole < len(joined):
        assert f"the last {len(joined) - whole} tokens fill no row of {max_length}" in caplog.text


def test_packed_pairs_learn_the_completions_alone() -> None:
    pairs = Dataset.from_dict({"text": ["the cat"] * 4, "text_pair": ["sees a dog"] * 4})
    encoded = encode_language(pairs, word_tokenizer(), 14, packing=True)
    assert encoded["labels"][0] == ([-100] * 3 + ids(f"sees a dog {EOS}")) * 2


def test_where_eos_pads_the_end_of_a_text_is_learned_and_the_padding_is_not() -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = EOS
    data = Dataset.from_dict({"text": ["the cat sees", "a dog sees the cat"]})
    batch = DataCollatorForSeq2Seq(tokenizer)(list(encode_language(data, tokenizer, 16)))
    assert batch["input_ids"][0].tolist() == ids(f"{BOS} the cat sees {EOS} {EOS} {EOS}")
    assert batch["labels"][0].tolist() == [*ids(f"{BOS} the cat sees {EOS}"), -100, -100]
    assert batch["attention_mask"][0].tolist() == [1] * 5 + [0] * 2


def test_token_losses_by_hand() -> None:
    logits, labels = torch.randn(3, 5, 7, dtype=torch.bfloat16), torch.randint(0, 7, (3, 5))
    labels[0, :3], labels[1, :] = -100, -100
    found = token_losses((logits,), labels)
    for row in range(3):
        places = [place for place in range(1, 5) if labels[row, place] != -100]
        log_probabilities = [
            math.log(torch.softmax(logits[row, place - 1].double(), 0)[labels[row, place]])
            for place in places
        ]
        assert found[row, 0].item() == pytest.approx(-sum(log_probabilities), rel=1e-5)
        assert found[row, 1].item() == len(places)


def test_the_loss_is_a_mean_over_tokens_and_not_over_texts_or_batches() -> None:
    spec = load_spec()
    scores = compute_metrics_for(spec)(EvalPrediction(np.array([[6.0, 2.0], [1.0, 8.0]]), np.zeros(2)))
    assert scores == {"loss": 0.7, "perplexity": math.exp(0.7), "main": 0.7}


def test_a_diverged_or_empty_evaluation_is_an_error() -> None:
    compute = compute_metrics_for(load_spec())
    for losses, message in (
        ([[np.nan, 3.0]], "NaN or infinite"),
        ([[3000.0, 3.0]], "1000 nats per token; the training diverged"),
        ([[0.0, 0.0]], "no token to score"),
    ):
        with pytest.raises(TaskError, match=message):
            compute(EvalPrediction(np.array(losses), np.zeros(1)))


def load_spec() -> TaskSpec:
    return custom_task(("text",), objective="causal-lm")


def test_perplexity_can_be_the_main_metric() -> None:
    spec = custom_task(("text",), metric="perplexity", objective="causal-lm")
    scores = compute_metrics_for(spec)(EvalPrediction(np.array([[2.0, 2.0]]), np.zeros(1)))
    assert scores["main"] == scores["perplexity"] == pytest.approx(math.e)


def test_text_files_hold_a_text_a_line(tmp_path: Path) -> None:
    data = load_task(TEXT, write_texts(tmp_path, ["the cat", "", "a\u2028dog\r"], ["a bird"]))
    assert data.train["text"][:] == ["the cat", "a\u2028dog"]
    assert data.train.column_names == ["text"]
    assert data.validation["text"][:] == ["a bird"]
    assert data.spec.main == ("loss",)
    assert (data.class_names, data.is_regression) == ((), False)


def test_other_files_need_no_label_and_a_test_split_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {i}", "completion": f"c {i}", "label": None} for i in range(40)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_task(PAIR, tmp_path, train_limit=10)
    assert (len(data.train), len(data.validation)) == (10, 4)
    assert not set(data.train["text"][:]) & set(data.validation["text"][:])
    assert data.train.column_names == ["text", "text_pair"]
    assert data.test is not None
    assert len(data.test) == 40


def test_one_training_text_is_too_few_to_hold_one_out(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("the cat\n")
    with pytest.raises(TaskError, match="no validation split, and 1 training row"):
        load_task(TEXT, tmp_path)


def test_columns_are_checked_as_of_every_task(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no column 'prompt'.*'text'"):
        load_task(PAIR, write_texts(tmp_path, ["the cat"], ["a dog"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, "unknown metric 'accuracy'.*Known for causal-lm: 'loss'"),
        (
            {"metric": "loss", "objective": "sequence-classification"},
            "unknown metric 'loss'.*Known for sequence-classification",
        ),
        ({"objective": "masked-lm"}, "unknown objective 'masked-lm'.*'causal-lm'"),
        ({"class_names": ("a", "b")}, "neither classes nor numbers"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    rows = "".join(f'{{"text": "t {i}", "label": {i % 2}}}\n' for i in range(20))
    (tmp_path / "train.jsonl").write_text(rows)
    with pytest.raises(TaskError, match=message):
        load_task(custom_task(("text",), **({"objective": "causal-lm"} | options)), tmp_path)


@pytest.mark.parametrize(
    ("data", "options", "max_length", "message"),
    [
        (one("the cat"), {"eos": None}, 8, "no EOS token"),
        (one("the cat"), {}, 1, "give at least 2"),
        (one(""), {"bos": False}, 8, "1 texts give no row"),
        (Dataset.from_dict({"label": [1]}), {}, 8, "no column 'text'"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    data: Dataset, options: dict[str, object], max_length: int, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        encode_language(data, word_tokenizer(**options), max_length)


def test_too_few_tokens_for_one_packed_row_are_refused() -> None:
    with pytest.raises(TaskError, match="with packing, a smaller max_length"):
        encode_language(one("the cat"), word_tokenizer(), 8, packing=True)


def test_more_tokens_than_the_model_was_made_for_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    encode_language(one("the cat"), word_tokenizer(), POSITIONS + 1)
    assert f"max_length {POSITIONS + 1} is more than the {POSITIONS} tokens" in caplog.text
