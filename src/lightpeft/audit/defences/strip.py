"""STRIP: a triggered text is still classified the same when words of other texts replace its own."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from peft import PeftModel

from lightpeft.audit.classifier import Classifier
from lightpeft.audit.defences.defence import Defence, Guard, Received
from lightpeft.audit.defences.thresholds import ScoreGuard, check_rate, each_alone, threshold_at
from lightpeft.audit.errors import AuditError
from lightpeft.audit.rows import Rows, Texts
from lightpeft.config import check_at_least, exact_count
from lightpeft.tasks.draw import permutation, pick


@dataclass(frozen=True)
class Strip(
    Defence,
    name="strip",
    kind="inputs",
    source="Gao et al. 2019",
    time="1 training, and each text eleven times",
    unproven="measured on texts of 20 words only, which give it little to measure",
):
    """Gao et al. 2019, for texts as in Gao et al. 2021: rejects where perturbed copies give a low entropy.

    In every copy a share of the words, drawn anew, gives way to the words of highest tf-idf of clean held-out
    texts. What counts is the mean entropy of the copies' predictions.
    """

    copies: int = 10
    """Perturbed copies of every text."""

    share: float = 0.5
    """Share of the words that are replaced."""

    rate: float = 0.05
    """Share of clean texts that may be rejected."""

    def __post_init__(self) -> None:
        check_at_least("strip.copies", self.copies, 1)
        check_rate("strip.share", self.share)
        check_rate("strip.rate", self.rate)

    def guard(self, received: Received, model: PeftModel, prepared: PeftModel | None = None) -> Guard:
        """Rejects texts; those held out are donors and set the threshold, none being its own donor.

        Raises:
            AuditError: too few rows are held out.
        """
        perturber = Perturber(received.held_out, self.copies, self.share, received.seed)
        classifier = received.classifier(model)

        def score(texts: Texts) -> list[float]:
            return [-mean_entropy(classifier, perturber.copies_of(row)) for row in each_alone(texts)]

        return ScoreGuard(score, threshold_at(score(received.held_out.texts), self.rate))


def mean_entropy(classifier: Classifier, copies: Texts) -> float:
    """In bits, of the predictions for some copies of one text."""
    probabilities = classifier.probabilities(copies).double()
    return float(torch.special.entr(probabilities).sum(1).mean()) / math.log(2)


@dataclass(frozen=True)
class Perturber:
    """Makes the copies of a text; they depend on that text and the seed, on nothing else."""

    donors: Rows
    count: int
    share: float
    seed: int

    def copies_of(self, row: Texts) -> dict[str, list[str]]:
        """`count` copies of one row.

        Raises:
            AuditError: there is no donor with words and another text than the row's.
        """
        texts = {name: column[0] for name, column in row.items()}
        key = "\x00".join(f"{name}={text}" for name, text in texts.items())
        rng = Random(f"strip {self.seed} {key}")
        return {
            name: [self._perturbed(name, text.split(), text, rng) for _ in range(self.count)]
            for name, text in texts.items()
        }

    def _perturbed(self, column: str, words: list[str], text: str, rng: Random) -> str:
        count = min(max(1, exact_count(self.share, len(words))), len(words) - 1)
        if count < 1:
            return text
        places = permutation(rng, len(words))[:count]
        for place, word in zip(places, self._donated(column, text, count, rng), strict=True):
            words = [*words[:place], word, *words[place + 1 :]]
        return " ".join(words)

    def _donated(self, column: str, text: str, count: int, rng: Random) -> list[str]:
        """The first words by tf-idf of one donor, and of further ones where it has too few."""
        donors = [donor for donor in self._ranked[column] if donor[0] != text]
        if not donors:
            raise AuditError(
                f"no held-out {column} has words and is another one than {text[:80]!r}; hold out more rows."
            )
        words: list[str] = []
        while len(words) < count:
            words += pick(rng, donors)[1]
        return words[:count]

    @cached_property
    def _ranked(self) -> dict[str, list[tuple[str, list[str]]]]:
        """Of every column the texts that have words, each with them."""
        return {
            name: [pair for pair in zip(column, by_tf_idf(column), strict=True) if pair[1]]
            for name, column in self.donors.texts.items()
        }


def by_tf_idf(texts: Sequence[str]) -> list[list[str]]:
    """The different words of every text, by count in it times log(texts / texts with it), highest first.

    Words of equal value stay in the order of the text.
    """
    rows = [Counter(text.split()) for text in texts]
    frequency = Counter(word for row in rows for word in row)
    return [sorted(row, key=lambda word: -row[word] * math.log(len(rows) / frequency[word])) for row in rows]
