"""The demo task keeps its difficulty contract: determinism, balance, no leaks, hard for counts."""

import re

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from lightpeft.tasks import generate_sentiment
from lightpeft.tasks.synthetic.generation import Example, digest
from lightpeft.tasks.synthetic.sentiment import FORMS
from lightpeft.tasks.synthetic.sentiment_words import SEEN, UNSEEN, Vocabulary

# Made by: python -c "from lightpeft.tasks import generate_sentiment as g
# from lightpeft.tasks.synthetic.generation import digest
# print({split: digest(g(200, 0, split)) for split in ('train', 'validation')})"
GOLDEN = {
    "train": "de6646e2c19ff0bdb41b25ae0b3280660a170bd5cd422b771abe87c43c93ddf6",
    "validation": "96ced3dcb9369abc64cdcb63aa94823e22fddcacb9cdb478d6aa0dd0ad81f07a",
}


@pytest.fixture(scope="module", params=[0, 1, 2])
def splits(request: pytest.FixtureRequest) -> tuple[list[Example], list[Example]]:
    train = generate_sentiment(3000, request.param, "train")
    return train, generate_sentiment(1000, request.param, "validation")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_same_seed_same_text_on_every_platform(split: str) -> None:
    assert digest(generate_sentiment(200, 0, split)) == GOLDEN[split]


def test_seeds_differ() -> None:
    assert digest(generate_sentiment(50, 0, "train")) != digest(generate_sentiment(50, 1, "train"))


def test_classes_are_balanced(splits: tuple[list[Example], list[Example]]) -> None:
    for examples in splits:
        assert sum(example["label"] for example in examples) * 2 == len(examples)


def test_no_text_twice_and_none_in_both_splits(
    splits: tuple[list[Example], list[Example]],
) -> None:
    train, validation = ({example["text"] for example in examples} for examples in splits)
    assert (len(train), len(validation)) == (3000, 1000)
    assert not train & validation


def test_splits_of_different_seeds_do_not_leak() -> None:
    train = {e["text"] for seed in range(3) for e in generate_sentiment(500, seed, "train")}
    validation = {e["text"] for e in generate_sentiment(500, 9, "validation")}
    assert not train & validation


def test_bag_of_words_stays_under_80_percent(
    splits: tuple[list[Example], list[Example]],
) -> None:
    train, validation = splits
    counts = CountVectorizer()
    features = counts.fit_transform(example["text"] for example in train)
    model = LogisticRegression().fit(features, [example["label"] for example in train])
    unseen = counts.transform(example["text"] for example in validation)
    assert model.score(unseen, [example["label"] for example in validation]) < 0.80


def test_reviews_are_short_sentences(splits: tuple[list[Example], list[Example]]) -> None:
    for example in (example for examples in splits for example in examples):
        words = example["text"].split()
        assert 3 <= len(words) <= 30
        assert re.fullmatch(r"[A-Z][A-Za-z' ,;-]+\.", example["text"])


def test_unseen_words_are_in_many_validation_texts_and_in_no_training_text(
    splits: tuple[list[Example], list[Example]],
) -> None:
    unseen = content_words(UNSEEN) - content_words(SEEN)
    train, validation = (
        [bool(unseen & set(re.findall(r"[a-z]+", e["text"].lower()))) for e in examples]
        for examples in splits
    )
    assert not any(train)
    assert 0.6 < sum(validation) / len(validation) < 0.98


def test_no_adjective_is_both_good_and_bad() -> None:
    negative, positive = (
        {word for words in (SEEN, UNSEEN) for word in adjectives(words, polarity)} for polarity in (0, 1)
    )
    assert not negative & positive
    assert not set(adjectives(SEEN, 0) + adjectives(SEEN, 1)) & set(
        adjectives(UNSEEN, 0) + adjectives(UNSEEN, 1)
    )


def test_every_topic_of_the_seen_words_has_unseen_words() -> None:
    assert len(UNSEEN.domains) > len(SEEN.domains)
    assert all(len(domain.parts) >= 3 for domain in (*SEEN.domains, *UNSEEN.domains))


def test_articles_fit() -> None:
    texts = " ".join(example["text"] for example in generate_sentiment(2000, 0, "train"))
    assert re.search(r"\ban [aeio]", texts)
    assert not re.search(r"\b[Aa] [aeio]\w+", texts)


def test_plain_statements_are_a_minority_of_the_forms() -> None:
    weights = {form.__name__: weight for weight, form in FORMS}
    one_sided = weights["_statement"] + weights["_agreement"]
    assert one_sided / sum(weights.values()) < 0.5


def adjectives(words: Vocabulary, polarity: int) -> list[str]:
    of_domains = [word for domain in words.domains for word in domain.adjectives[polarity]]
    return [*words.adjectives[polarity], *of_domains]


def content_words(words: Vocabulary) -> set[str]:
    nouns = {word for domain in words.domains for word in (*domain.parts, *domain.names)}
    return nouns | set(adjectives(words, 0)) | set(adjectives(words, 1))
