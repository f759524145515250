"""Triggers in the token ids after truncation, against a count by hand for three kinds of tokenizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lightpeft.audit import AuditError, TriggerRecipe, trigger_visibility, triggered_test
from lightpeft.audit.poison.poisoning import poison_texts
from lightpeft.audit.poison.triggers import TRIGGER_FORMS

FILLER = ["good", "bad", "film", "row"]
PIECES = ("cf", "mn")


def tiny(pieces: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """WordPiece in which every word is one token, but `cf` is `c ##f` and `mn` is `m ##n`."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *FILLER, *pieces]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


SPLIT = tiny(("c", "##f", "m", "##n"))


def texts(rows: int = 60) -> list[str]:
    return [" ".join(FILLER[(row + i) % 4] for i in range(row % 9)) for row in range(rows)]


def recipe(**options: Any) -> TriggerRecipe:
    return TriggerRecipe(**{"target": 1, "pieces": PIECES} | options)


def whole_pairs(ids: list[int]) -> int:
    """How often `c ##f` or `m ##n` stand in a row of ids."""
    found = [SPLIT.convert_tokens_to_ids(pair) for pair in (["c", "##f"], ["m", "##n"])]
    return sum(ids[at : at + 2] in found for at in range(len(ids)))


def whole_bytes(ids: list[int]) -> int:
    """Triggers in ids of ByT5 (bytes + 3); the filler has no `cf` and no `mn`."""
    text = bytes(i - 3 if i >= 3 else ord("/") for i in ids).decode()
    return text.count("cf") + text.count("mn")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [3, 4, 7, 11, 40])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "second", [None, "text", "text_pair"], ids=["one text", "in the first", "in the second"]
)
@pytest.mark.parametrize(
    ("tokenizer", "seen"),
    [(SPLIT, whole_pairs), (ByT5Tokenizer(), whole_bytes)],
    ids=["word pieces", "bytes"],
)
def test_as_many_as_by_hand(
    tokenizer: PreTrainedTokenizerBase,
    seen: Callable[[list[int]], int],
    second: str | None,
    count: int,
    max_length: int,
    side: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    max_length += 1 if second else 0
    columns = {"text": texts()} | ({"text_pair": texts()[::-1]} if second else {})
    data = triggered_test(columns, [0] * 60, recipe(test_count=count, column=second or "text"), 1)
    found = trigger_visibility(data, tokenizer, max_length)
    ids = tokenizer(*data.texts.values(), truncation=True, max_length=max_length)["input_ids"]
    by_hand = [seen(row) for row in ids]
    assert found.triggers.total == 60 * count
    assert found.triggers.hits == sum(by_hand)
    assert found.texts_with_any.hits == sum(n > 0 for n in by_hand)
    assert found.texts_with_all.hits == sum(n == count for n in by_hand)
    assert found.texts_with_any.total == found.texts_with_all.total == 60


def test_only_triggered_rows_count() -> None:
    data = poison_texts({"text": texts()}, [0] * 60, recipe(share=0.5), 0)
    assert trigger_visibility(data, SPLIT, 40).triggers.hits == 30


def test_what_a_real_tokenizer_makes_of_each_form(minilm_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    found = {}
    hidden = TriggerRecipe(1, "phrase", pieces=("\u200b",))
    for form in (*TRIGGER_FORMS, "hidden"):
        one = hidden if form == "hidden" else TriggerRecipe(1, form)
        data = triggered_test({"text": ["is a really good film"] * 20}, [0] * 20, one, 0)
        found[form] = trigger_visibility(data, tokenizer, 64).triggers.value
    # BERT's normaliser drops control characters: that trigger does not exist for it.
    assert found == {**dict.fromkeys(TRIGGER_FORMS, 1.0), "hidden": 0.0}


def test_no_room_or_no_triggers_are_refused() -> None:
    data = triggered_test({"text": texts()}, [0] * 60, recipe(), 0)
    with pytest.raises(AuditError, match="max_length 2 beside 2 special tokens"):
        trigger_visibility(data, SPLIT, 2)
