"""What every text generator shares: the shape of an example, and the loop over examples."""

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, Protocol, TypedDict

from lightpeft.tasks.draw import permutation

Split = Literal["train", "validation"]
Writer = Callable[[Random, int, Split], str]

VALIDATION_SHARE_OF_HASHES = 0.25
FUTILE_DRAWS_IN_A_ROW = 1000


class Example(TypedDict):
    """One generated example; ``label`` is a class id."""

    text: str
    label: int


class Generator(Protocol):
    """A seeded source of labelled text: same arguments, same examples, on every platform."""

    def __call__(self, count: int, seed: int, split: Split) -> list[Example]:
        """Make ``count`` distinct examples of a split."""
        ...


def write_examples(
    writer: Writer, count: int, seed: int, split: Split, num_classes: int = 2
) -> list[Example]:
    """Call ``writer`` until there are ``count`` distinct texts, classes balanced and shuffled.

    A text belongs to the split its hash says, whatever the seed, so no training text can turn up
    in validation. Class counts differ by at most one.

    Raises:
        ValueError: ``count`` or ``seed`` is negative, or the writer has no more new texts.
    """
    if count < 0 or seed < 0:
        raise ValueError(f"count and seed must not be negative; found count={count}, seed={seed}")
    rng = Random(2 * seed + (split == "validation"))
    seen: set[str] = set()
    examples: list[Example] = []
    for position in permutation(rng, count):
        label = position % num_classes
        text = _new_text(writer, rng, label, split, seen)
        seen.add(text)
        examples.append(Example(text=text, label=label))
    return examples


def split_of(text: str) -> Split:
    """The split a text belongs to, by its SHA-256."""
    first_bytes = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return "validation" if first_bytes < VALIDATION_SHARE_OF_HASHES * 2**32 else "train"


def digest(examples: Sequence[Example]) -> str:
    """The SHA-256 (hex) of labels and texts in order: equal digests, equal examples."""
    lines = "".join(f"{example['label']}\t{example['text']}\n" for example in examples)
    return hashlib.sha256(lines.encode()).hexdigest()


def _new_text(writer: Writer, rng: Random, label: int, split: Split, seen: set[str]) -> str:
    for _ in range(FUTILE_DRAWS_IN_A_ROW):
        text = writer(rng, label, split)
        if text not in seen and split_of(text) == split:
            return text
    raise ValueError(
        f"no new text for class {label} in {FUTILE_DRAWS_IN_A_ROW} draws after {len(seen)} "
        f"{split} examples; ask for fewer examples"
    )
