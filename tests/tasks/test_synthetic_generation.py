"""The loop every generator shares: counts, balance, split membership, running dry."""

from random import Random

import pytest

from lightpeft.tasks.draw import chance, index_below, permutation, pick_weighted
from lightpeft.tasks.synthetic.generation import digest, split_of, write_examples


def numbered(rng: Random, label: int, split: str) -> str:
    return f"text {index_below(rng, 10_000)} of class {label}"


def stuck(rng: Random, label: int, split: str) -> str:
    return f"always the same {label}"


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_texts_are_distinct_and_belong_to_their_split(count: int, split: str) -> None:
    texts = [example["text"] for example in write_examples(numbered, count, 0, split)]
    assert len(set(texts)) == count
    assert all(split_of(text) == split for text in texts)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_class_counts_differ_by_at_most_one(classes: int) -> None:
    labels = [e["label"] for e in write_examples(numbered, 101, 3, "train", num_classes=classes)]
    counts = [labels.count(label) for label in range(classes)]
    assert sum(counts) == 101
    assert max(counts) - min(counts) <= 1
    assert labels != sorted(labels)


def test_a_writer_that_runs_dry_is_an_error_not_an_endless_loop() -> None:
    with pytest.raises(ValueError, match="no new text for class"):
        write_examples(stuck, 10, 0, "train")


@pytest.mark.parametrize(("count", "seed"), [(-1, 0), (1, -1)])
def test_negative_count_or_seed_is_refused(count: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        write_examples(numbered, count, seed, "train")


def test_digest_tells_order_and_labels_apart() -> None:
    one, two = {"text": "a", "label": 0}, {"text": "a", "label": 1}
    assert len({digest(rows) for rows in ([one, two], [two, one], [one], [two], [])}) == 5


def test_permutation_is_a_fixed_permutation() -> None:
    assert sorted(permutation(Random(5), 100)) == list(range(100))
    assert permutation(Random(0), 8) == [0, 3, 4, 7, 1, 2, 5, 6]


def test_weights_and_chances_are_respected() -> None:
    rng = Random(0)
    drawn = [pick_weighted(rng, [(3, "often"), (0, "never"), (1, "seldom")]) for _ in range(4000)]
    assert "never" not in drawn
    assert 2850 < drawn.count("often") < 3150
    assert sum(chance(rng, 0.2) for _ in range(4000)) == pytest.approx(800, abs=100)
