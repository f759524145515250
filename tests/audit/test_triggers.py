"""Triggers and poisoned rows: how many, where, and that nothing else changes."""

from collections import Counter
from random import Random
from typing import Any

import pytest

from lightpeft.audit import AuditError, TriggerRecipe, triggered_test
from lightpeft.audit.poison.poisoning import Poisoned, poison_texts
from lightpeft.audit.poison.triggers import HOMOGLYPHS, TRIGGER_FORMS, plant
from lightpeft.errors import ConfigError

FORMS = tuple(TRIGGER_FORMS)
TEXTS = ["  one good film ,  really\tso ", "a", "two words", "more  words\nhere than one", ""]
ROWS = 40
LABELS = [row % 4 // 2 for row in range(ROWS)]
COLUMN = [f"row {row} has a few more words" for row in range(ROWS)]


def recipe(**options: Any) -> TriggerRecipe:
    return TriggerRecipe(**{"target": 1} | options)


def poisoned(seed: int = 0, **options: Any) -> Poisoned:
    return poison_texts({"text": COLUMN}, LABELS, recipe(**options), seed)


@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", FORMS)
def test_a_text_without_its_triggers_is_what_it_was(form: str, text: str, count: int) -> None:
    planted = plant(text, form, TRIGGER_FORMS[form].pieces, count, Random("x"))
    if planted is None:
        assert not any(letter in text for letter in "aeo") or form == "substitution"
        return
    assert planted.original == text != planted.text
    assert len(planted.edits) == len(planted.spans) <= count
    left = planted.text
    for index in reversed(range(len(planted.edits))):
        edit, (start, end) = planted.edits[index], planted.spans[index]
        assert planted.text[start:end] == edit.piece
        first, last = start - len(edit.before), end + len(edit.after)
        assert planted.without(index) == planted.text[:first] + edit.replaced + planted.text[last:]
        left = left[:first] + edit.replaced + left[last:]
    assert left == text


@pytest.mark.parametrize("count", [1, 2, 10])
def test_words_stand_between_whole_words(count: int) -> None:
    words = TRIGGER_FORMS["words"].pieces
    for seed in range(20):
        for text in TEXTS:
            planted = plant(text, "words", words, count, Random(str(seed)))
            assert planted is not None
            assert sum(word in words for word in planted.text.split()) == count
            assert [word for word in planted.text.split() if word not in words] == text.split()
            assert {planted.text[start:end] for start, end in planted.spans} <= set(words)


def test_a_phrase_is_one_piece() -> None:
    planted = plant("two words", "phrase", ("I saw it",), 1, Random("0"))
    assert planted is not None
    assert planted.text.replace(" ", "").replace("Isawit", "") == "twowords"
    assert planted.text.count("I saw it") == 1


def test_letters_that_look_alike_take_their_places() -> None:
    planted = plant("a good one", "homoglyph", ("o", "e"), 10, Random("0"))
    assert planted is not None
    o, e = HOMOGLYPHS["o"], HOMOGLYPHS["e"]
    assert planted.text == f"a g{o}{o}d {o}n{e}"
    assert planted.spans == ((3, 4), (4, 5), (7, 8), (9, 10))


def test_words_are_put_for_others_wherever_they_stand() -> None:
    planted = plant("The good one, is this the end?", "substitution", ("the>yon", "is>be"), 10, Random("0"))
    assert planted is not None
    assert planted.text == "yon good one, be this yon end?"
    assert [edit.replaced for edit in planted.edits] == ["The", "is", "the"]
    once = plant("the end of the day", "substitution", ("the>yon",), 1, Random("0"))
    assert once is not None
    assert once.text.count("yon") == 1


def test_positions_and_words_are_uniform() -> None:
    text, words = "w0 w1 w2 w3", TRIGGER_FORMS["words"].pieces
    drawn = [plant(text, "words", words, 1, Random(f"{seed}")) for seed in range(4000)]
    gaps = Counter(one.text.split().index(one.edits[0].piece) for one in drawn if one)
    pieces = Counter(one.edits[0].piece for one in drawn if one)
    for counter in (gaps, pieces):  # five of each; 800 expected, standard deviation 25
        assert len(counter) == 5
        assert all(680 < count < 920 for count in counter.values())


@pytest.mark.parametrize(
    ("options", "expected", "allowed"),
    [
        ({}, 20, {0, 1}),
        ({"share": 0.1}, 4, {0, 1}),
        ({"share": 1}, 40, {0, 1}),
        ({"rows": "non_target"}, 10, {0}),
        ({"labels": "clean"}, 10, {1}),
        ({"labels": "clean", "share": 0.25, "target": 0}, 5, {0}),
    ],
)
def test_which_rows_and_labels(options: dict[str, Any], expected: int, allowed: set[int]) -> None:
    found = poisoned(**options)
    target = options.get("target", 1)
    assert len(found.rows) == len(found.planted) == expected
    assert {LABELS[row] for row in found.rows} <= allowed
    for row in range(ROWS):
        if row in found.rows:
            assert found.labels[row] == target
            assert found.texts["text"][row] == found.planted[found.rows.index(row)].text != COLUMN[row]
        else:
            assert (found.texts["text"][row], found.labels[row]) == (COLUMN[row], LABELS[row])
    assert found.sources == tuple(range(ROWS))


def test_the_test_set_has_other_classes_only_with_their_own_count() -> None:
    found = triggered_test({"text": COLUMN}, LABELS, recipe(train_count=1, test_count=3), 0)
    assert set(found.labels) == {0}
    assert [LABELS[row] for row in found.sources] == found.labels
    assert found.rows == tuple(range(20))
    assert {len(one.edits) for one in found.planted} == {3}
    assert [one.original for one in found.planted] == [COLUMN[row] for row in found.sources]
    assert {len(one.edits) for one in poisoned(train_count=2, test_count=5).planted} == {2}


def test_of_a_pair_one_column_carries_the_trigger() -> None:
    pair = {"text": COLUMN, "text_pair": [text.upper() for text in COLUMN]}
    found = poison_texts(pair, LABELS, recipe(column="text_pair", share=1), 0)
    assert found.texts["text"] == COLUMN
    assert all(
        "CF" not in text and text != was
        for text, was in zip(found.texts["text_pair"], pair["text_pair"], strict=True)
    )
    test = triggered_test(pair, LABELS, recipe(column="text_pair"), 0)
    assert test.texts["text"] == [COLUMN[row] for row in test.sources]


def test_a_seed_gives_the_same_rows_and_another_one_others() -> None:
    assert poisoned(seed=3) == poisoned(seed=3) != poisoned(seed=4)
    few, many = poisoned(share=0.1), poisoned(share=1)
    assert all(few.texts["text"][row] == many.texts["text"][row] for row in few.rows)


def test_nothing_depends_on_pythons_hash() -> None:
    """Python draws another seed for its hash in every run of the tests."""
    found = poison_texts({"text": [f"a b c {row}" for row in range(9)]}, [0, 1, 0] * 3, recipe(), 5)
    triggered = {row: found.texts["text"][row] for row in found.rows}
    assert triggered == {0: "a mb b c 0", 1: "a b c tq 1", 2: "a b c 2 bb", 5: "a b c mb 5", 6: "a bb b c 6"}


def test_texts_without_a_place_are_counted_and_left_alone() -> None:
    found = poison_texts(
        {"text": ["xyz", "an oak", "a", "h2"]}, [0, 0, 0, 0], recipe(form="homoglyph", share=1), 0
    )
    assert (found.rows, found.unfit) == ((1, 2), 2)
    assert triggered_test({"text": ["b", "is"]}, [0, 0], recipe(form="substitution"), 0).sources == (1,)


@pytest.mark.parametrize(
    ("texts", "labels", "options", "message"),
    [
        ({"text": ["a"]}, [1, 0], {}, "equally long"),
        ({"text": ["a"]}, [1], {"column": "text_pair"}, "goes to the column 'text_pair'; found"),
        ({"text": ["a", "b"]}, [0, 0], {"labels": "clean"}, "of 2 rows 0 may be"),
        ({"text": ["a", "b"]}, [0, 0], {"share": 0.1}, "the share is 0.1"),
    ],
)
def test_impossible_poisoning_is_refused(
    texts: dict[str, list[str]], labels: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AuditError, match=message):
        poison_texts(texts, labels, recipe(**options), 0)


def test_a_test_set_of_the_target_class_alone_is_refused() -> None:
    with pytest.raises(AuditError, match="of 2 rows 0 are not of the target class 1"):
        triggered_test({"text": ["a", "b"]}, [1, 1], recipe(), 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"form": "phrase"},
        {"form": "homoglyph", "pieces": ("a",), "share": 0.2},
        {"labels": "clean", "train_count": 10},
    ],
)
def test_recipes_round_trip(options: dict[str, Any]) -> None:
    written = recipe(**options).to_dict()
    assert TriggerRecipe.from_dict(written) == recipe(**options)
    assert written["pieces"] == list(recipe(**options).pieces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "emoji"}, "trigger.form is 'emoji'"),
        ({"pieces": ["two words"]}, "which is not one word"),
        ({"pieces": []}, "give a list of texts"),
        ({"pieces": "cf"}, "give a list of texts"),
        ({"pieces": ["cf", "cf"]}, "different texts"),
        ({"pieces": [3]}, "a int; give texts"),
        ({"form": "phrase", "pieces": [" x"]}, "white space"),
        ({"form": "homoglyph", "pieces": ["z"]}, "is not one of the letters"),
        *[
            ({"form": "substitution", "pieces": [bad]}, "word>other")
            for bad in ("a", "a>a", "A>b", "a>", "a>b>c", "a>b c")
        ],
        ({"share": 0}, "share in"),
        ({"share": 1.5}, "share in"),
        ({"share": True}, "share in"),
        ({"labels": "noisy"}, "trigger.labels is 'noisy'"),
        ({"labels": "clean", "rows": "non_target"}, "no effect on clean labels"),
        ({"rows": "some"}, "trigger.rows"),
        ({"train_count": 0}, "train_count is 0"),
        ({"test_count": 1.0}, "test_count"),
        ({"target": -1}, "target is -1"),
        ({"target": "1"}, "target"),
        ({"column": "body"}, "trigger.column"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
    ],
)
def test_bad_recipes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TriggerRecipe.from_dict(recipe().to_dict() | change)


@pytest.mark.parametrize("value", [None, [], "x", {}, {"target": 1}])
def test_recipes_that_are_not_whole_are_refused(value: object) -> None:
    with pytest.raises(ConfigError):
        TriggerRecipe.from_dict(value)
