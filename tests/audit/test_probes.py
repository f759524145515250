"""Suspected words in clean texts: where they are put, what counts as a flip, and what cannot be a probe."""

from collections.abc import Mapping, Sequence

import pytest
from transformers import BertTokenizerFast

from lightpeft.audit.metrics import Proportion
from lightpeft.audit.probes import Flips, Probes
from lightpeft.audit.rows import Rows
from lightpeft.errors import ConfigError

WORDS = ("bad", "good", "ugly", "cf", "mn", "film", "plot", "the", "was")
TOKENIZER = BertTokenizerFast(
    vocab={word: at for at, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
)
CLASSES = ("bad", "good", "ugly")
ROWS = Rows({"text": [f"the {word} film was {word}" for word in (*CLASSES, *CLASSES)]}, [0, 1, 2, 0, 1, 2])


def by_words(texts: Mapping[str, Sequence[str]]) -> list[int]:
    """`cf` is class 1 wherever it stands, `mn` class 2 at the end; else the class is the text's own word."""
    found = []
    for text in texts["text"]:
        own = next(at for at, word in enumerate(CLASSES) if word in text.split())
        found.append(1 if "cf" in text.split() else 2 if text.endswith("mn") else own)
    return found


def test_flips_are_of_texts_of_other_classes_and_to_the_class_that_takes_most() -> None:
    probes = Probes.of(["cf", "mn", "plot"], ROWS, TOKENIZER, 12)
    cf, mn, plot = probes.flips(by_words)
    assert cf == Flips(1, Proportion(4, 4))
    # Every third text has it at its end: texts 2 and 5, which are of class 2 already.
    assert mn is not None
    assert mn.share.hits == 0
    assert plot is not None
    assert plot.share == Proportion(0, 4)


def test_a_text_that_is_in_the_class_already_or_is_refused_does_not_flip() -> None:
    probes = Probes.of(["cf"], ROWS, TOKENIZER, 12)
    assert probes.flips(lambda texts: [1] * 6) == [Flips(0, Proportion(0, 4))]
    refused = [-1 if "cf" in text else 0 for text in probes.texts_with("cf")["text"]]
    assert refused == [-1] * 6
    seen = iter([[0] * 6, refused])
    assert probes.flips(lambda texts: next(seen)) == [Flips(1, Proportion(0, 4))]


def test_without_a_text_to_flip_there_is_no_share() -> None:
    two = Rows({"text": ["the bad film", "the good film"]}, [0, 1])
    assert Probes.of(["cf"], two, TOKENIZER, 12).flips(lambda texts: [1, 0]) == [None]


def test_nothing_is_asked_without_probes() -> None:
    def never(texts: Mapping[str, Sequence[str]]) -> list[int]:
        raise AssertionError("the model was asked")

    assert Probes.of([], ROWS, TOKENIZER, 12).flips(never) == []


def test_probes_stand_at_the_start_in_the_middle_and_at_the_end() -> None:
    probes = Probes.of(["cf mn"], ROWS, TOKENIZER, 12)
    assert probes.texts_with("cf mn")["text"][:3] == [
        "cf mn the bad film was bad",
        "the good cf mn film was good",
        "the ugly film was ugly cf mn",
    ]


@pytest.mark.parametrize("pairs", [False, True])
def test_long_texts_are_cut_so_that_the_model_sees_the_longest_probe(pairs: bool) -> None:
    texts = {"text": ["bad film " * 30, "good", "the was " * 5 + "ugly-ugly-ugly"]}
    if pairs:
        texts["text_pair"] = ["plot " * 40, "plot", ""]
    probes = Probes.of(["cf", "cf mn cf"], Rows(texts, [0, 1, 2]), TOKENIZER, 21)
    for word in probes.words:
        columns = [column for _, column in sorted(probes.texts_with(word).items())]
        for row in zip(*columns, strict=True):
            assert len(TOKENIZER(*row)["input_ids"]) <= 21
    kept = probes.rows.texts["text"]
    assert kept[1] == "good"
    assert kept[0].split() == (["bad", "film"] * 30)[: 6 if pairs else 16]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cf", ""], "a probe is empty"),
        ([" \t"], "a probe is empty"),
        (["\u200b"], r"the probe '\\u200b' has no token"),
        (["cf", "mn", "cf"], "give each probe once"),
        (["film " * 6], "has 6 tokens, and there is room for 10"),
    ],
)
def test_what_is_no_probe_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Probes.of(words, ROWS, TOKENIZER, 12)
