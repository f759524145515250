"""Token ids: the same as the tokenizer gives one by one, unpadded, with labels."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from lightpeft.tasks import TaskError, encode, features, truncated_share

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film"]


@pytest.fixture(params=[True, False], ids=["token_type_ids", "no token_type_ids"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if request.param else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=names,
        model_max_length=32,
    )


ONE = Dataset.from_dict({"text": ["good film", "bad", "film " * 9], "label": [1, 0, 1]})
TWO = Dataset.from_dict({"text": ["good"], "text_pair": ["bad film"], "label": [0.25]})


def test_one_text(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode(ONE, tokenizer, max_length=6)
    assert encoded["input_ids"][:] == [[1, 4, 6, 2], [1, 5, 2], [1, 6, 6, 6, 6, 2]]
    assert encoded["attention_mask"][:] == [[1] * 4, [1] * 3, [1] * 6]
    assert encoded["labels"][:] == [1, 0, 1]
    assert set(encoded.column_names) == {*tokenizer.model_input_names, "labels"}


def test_two_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode(TWO, tokenizer, max_length=16)
    assert encoded["input_ids"][:] == [[1, 4, 2, 5, 6, 2]]
    if "token_type_ids" in tokenizer.model_input_names:
        assert encoded["token_type_ids"][:] == [[0, 0, 0, 1, 1, 1]]
    assert encoded["labels"][:] == [0.25]


def test_of_two_texts_the_longer_is_cut_first(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = Dataset.from_dict({"text": ["good " * 5], "text_pair": ["bad"]})
    assert encode(pairs, tokenizer, max_length=7)["input_ids"][:] == [[1, 4, 4, 4, 2, 5, 2]]


def test_texts_without_labels_give_no_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    assert "labels" not in encode(ONE.remove_columns("label"), tokenizer, 8).column_names


def test_order_is_kept_over_batches(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode(ONE, tokenizer, 8).to_dict()
    monkeypatch.setattr(features, "BATCH", 2)
    assert encode(ONE, tokenizer, 8).to_dict() == whole


def test_the_usual_collator_pads_each_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode(ONE, tokenizer, max_length=6)
    batch = DataCollatorWithPadding(tokenizer)([encoded[0], encoded[1]])
    assert batch["input_ids"].tolist() == [[1, 4, 6, 2], [1, 5, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].dtype == torch.int64


def test_regression_labels_stay_float32(tokenizer: PreTrainedTokenizerFast) -> None:
    typed = TWO.cast_column("label", encode(TWO, tokenizer, 16).features["labels"])
    batch = DataCollatorWithPadding(tokenizer)([encode(typed, tokenizer, 16)[0]])
    assert batch["labels"].dtype == torch.float32


@pytest.mark.parametrize(("max_length", "share"), [(3, 2 / 3), (4, 1 / 3), (10, 1 / 3), (11, 0.0)])
def test_truncated_share(tokenizer: PreTrainedTokenizerFast, max_length: int, share: float) -> None:
    assert truncated_share(ONE, tokenizer, max_length) == pytest.approx(share)


def test_truncated_share_of_nothing_is_zero(tokenizer: PreTrainedTokenizerFast) -> None:
    assert truncated_share(ONE.select([]), tokenizer, 8) == 0.0


def test_no_room_for_text_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TaskError, match="max_length 2 leaves no room for text beside 2 special"):
        encode(ONE, tokenizer, 2)
    with pytest.raises(TaskError, match="beside 3 special tokens"):
        encode(TWO, tokenizer, 3)


def test_data_not_from_load_task_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TaskError, match="no column 'text'; found 'sentence'"):
        encode(Dataset.from_dict({"sentence": ["a"]}), tokenizer, 8)


def test_more_than_the_model_takes_is_said(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    encode(ONE, tokenizer, 64)
    assert "max_length 64 is more than the 32 tokens" in caplog.text
