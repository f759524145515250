"""Spam and the second domains keep the demo task's contract: same text, balance, no leaks, no give-away."""

import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from lightpeft.tasks import find_task
from lightpeft.tasks.synthetic import Generator, generate_reviews, generate_sms, generate_spam
from lightpeft.tasks.synthetic.generation import Example, digest
from lightpeft.tasks.synthetic.reviews import LONG_SEEN, LONG_UNSEEN
from lightpeft.tasks.synthetic.sentiment_words import SEEN, UNSEEN, Vocabulary
from lightpeft.tasks.synthetic.spam_words import MAIL_SEEN, MAIL_UNSEEN, SMS_SEEN, SMS_UNSEEN, Wording

# Made by: python -c "from lightpeft.tasks.synthetic import *
# from lightpeft.tasks.synthetic.generation import digest
# print({(g.__name__, s): digest(g(200, 0, s)) for g in (generate_spam, generate_sms, generate_reviews)
#        for s in ('train', 'validation')})"
GOLDEN: dict[tuple[str, str], str] = {
    ("generate_spam", "train"): "3b0cf78fc1152266e4db2a7086a6a72a2027ea486c71bc23e0265dcfea8d3f23",
    ("generate_spam", "validation"): "a51c0d3ae28e83b01a7e075c29b0f4f8408a0df6b0f44408bd5e6f0178d63ae8",
    ("generate_sms", "train"): "56489f640223ae90315af679286ac355b9906f74234b67d24521ea192f39a27f",
    ("generate_sms", "validation"): "5df0647399483308f4a2f6e8b3580bb54a10a1ddbc8d90241f641f5dd1e23c5c",
    ("generate_reviews", "train"): "e2f8213751b688e114c83d85c28b364d10f54a9dddee4eebbd4817ed23eccbd6",
    ("generate_reviews", "validation"): "182650cb30b5b8192791a5e0bb8761d591e549ece84f02fcfd1e8bf1d61dee28",
}
WORDS = {"generate_spam": (10, 80), "generate_sms": (4, 40), "generate_reviews": (10, 110)}
SPAM = (generate_spam, generate_sms)
ALL = (*SPAM, generate_reviews)
WORDINGS = ((MAIL_SEEN, MAIL_UNSEEN), (SMS_SEEN, SMS_UNSEEN))

Splits = tuple[list[Example], list[Example]]


@pytest.fixture(scope="module")
def splits() -> dict[str, Splits]:
    return {make.__name__: (make(1500, 1, "train"), make(500, 1, "validation")) for make in ALL}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("make", ALL)
def test_same_seed_same_text_on_every_platform(make: Generator, split: str) -> None:
    assert digest(make(200, 0, split)) == GOLDEN[make.__name__, split]


@pytest.mark.parametrize("make", ALL)
def test_seeds_differ(make: Generator) -> None:
    assert digest(make(50, 0, "train")) != digest(make(50, 1, "train"))


@pytest.mark.parametrize("make", ALL)
def test_balanced_distinct_and_without_leaks(make: Generator, splits: dict[str, Splits]) -> None:
    for examples in splits[make.__name__]:
        assert sum(example["label"] for example in examples) * 2 == len(examples)
    train, validation = ({e["text"] for e in examples} for examples in splits[make.__name__])
    assert (len(train), len(validation)) == (1500, 500)
    assert not validation & (train | {e["text"] for seed in (0, 7) for e in make(500, seed, "train")})


@pytest.mark.parametrize("make", ALL)
def test_lengths_and_characters(make: Generator, splits: dict[str, Splits]) -> None:
    least, most = WORDS[make.__name__]
    for example in (example for examples in splits[make.__name__] for example in examples):
        assert least <= len(example["text"].split()) <= most
        assert re.fullmatch(r"[A-Za-z0-9'&!?;:. ,-]+", example["text"])
        assert "  " not in example["text"]


@pytest.mark.parametrize("make", ALL)
def test_no_single_word_gives_the_class_away(make: Generator, splits: dict[str, Splits]) -> None:
    """The best rule of the form `this word occurs` stays under 75 %."""
    train = splits[make.__name__][0]
    found = CountVectorizer(binary=True, token_pattern=r"[^\s.,!?]+").fit_transform(e["text"] for e in train)
    labels = np.array([example["label"] for example in train])
    right = (found.toarray() == labels[:, None]).mean(axis=0)
    assert max(right.max(), 1 - right.min()) < 0.75


@pytest.mark.parametrize("make", ALL)
def test_the_two_domains_of_a_subject_are_different_text(make: Generator, splits: dict[str, Splits]) -> None:
    """Attacker and user have rows of one task but not of one domain."""
    others = [name for name in splits if name != make.__name__]
    own = {e["text"] for examples in splits[make.__name__] for e in examples}
    assert not any(own & {e["text"] for examples in splits[name] for e in examples} for name in others)


@pytest.mark.parametrize(("seen", "unseen"), WORDINGS)
def test_unseen_phrases_are_in_no_list_of_seen_ones(seen: Wording, unseen: Wording) -> None:
    for kind in ("baits", "demands", "news", "requests", "verdicts", "small_talk"):
        assert not set(getattr(seen, kind)) & set(getattr(unseen, kind))
    assert seen.slots.keys() == unseen.slots.keys()
    for name in seen.slots:
        assert not set(seen.slots[name]) & set(unseen.slots[name])


@pytest.mark.parametrize(("make", "wording"), [(generate_spam, MAIL_UNSEEN), (generate_sms, SMS_UNSEEN)])
def test_unseen_names_are_in_validation_only(
    make: Generator, wording: Wording, splits: dict[str, Splits]
) -> None:
    names = {name for slot in ("name", "place", "firm") for name in wording.slots[slot]}
    train, validation = (
        [bool(names & set(re.findall(r"\w+", e["text"]))) for e in examples]
        for examples in splits[make.__name__]
    )
    assert not any(train)
    assert 0.3 < sum(validation) / len(validation) < 0.98


@pytest.mark.parametrize("wording", [wording for pair in WORDINGS for wording in pair])
def test_slots_are_known_and_a_reported_bait_is_not_told_to_the_reader(wording: Wording) -> None:
    phrases = [
        p
        for kind in ("demands", "news", "requests", "verdicts", "small_talk")
        for p in getattr(wording, kind)
    ]
    phrases += [text for bait in wording.baits for text in (bait.direct, bait.reported)]
    assert {slot for phrase in phrases for slot in re.findall(r"\{(.*?)\}", phrase)} <= wording.slots.keys()
    assert not any(re.search(r"\byour?\b", bait.reported) for bait in wording.baits)


def test_ham_speaks_of_spam_and_spam_of_everyday_things(splits: dict[str, Splits]) -> None:
    train = splits["generate_spam"][0]
    ham, spam = ([e["text"] for e in train if e["label"] == label] for label in (0, 1))
    assert sum("password on our page" in text for text in ham) > 20
    assert sum("sends kind regards" in text for text in spam) > 20


@pytest.mark.parametrize(("long", "short"), [(LONG_SEEN, SEEN), (LONG_UNSEEN, UNSEEN)])
def test_long_reviews_are_of_other_subjects(long: Vocabulary, short: Vocabulary) -> None:
    names = {name for domain in long.domains for name in domain.names}
    assert not names & {name for domain in short.domains for name in domain.names}
    assert len(LONG_SEEN.domains) == len(LONG_UNSEEN.domains)
    assert all(len(domain.parts) >= 3 for domain in long.domains)


def test_long_reviews_are_several_sentences(splits: dict[str, Splits]) -> None:
    counts = {e["text"].count(".") for examples in splits["generate_reviews"] for e in examples}
    assert counts == {3, 4, 5}


@pytest.mark.parametrize("name", ["reviews", "spam", "sms"])
def test_they_are_built_in_tasks(name: str) -> None:
    spec = find_task(name)
    assert spec.name == f"demo/{name}"
    assert spec.class_names == (("negative", "positive") if name == "reviews" else ("ham", "spam"))
