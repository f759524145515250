"""Perplexities of texts that are given as words: by word n-grams of the user's own texts."""

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

from lightpeft.config import check_at_least

_PIECE = re.compile(r"\w+|[^\w\s]")
START, END, UNKNOWN = "<s>", "</s>", "<unk>"
"""None of them can be a piece of a text."""


class LanguageModel(ABC):
    """Says how surprising texts are."""

    @abstractmethod
    def perplexities(self, texts: Sequence[Sequence[str]]) -> list[float]:
        """exp of the mean surprise, in nats, of each text's tokens; of the text alone, without padding.

        Args:
            texts: n texts, each as its words without white space.

        Returns:
            n numbers of at least 1; infinity for a text without a token.
        """


def pieces(word: str) -> list[str]:
    """What n-grams are made of: a word's runs of letters and digits in lower case, and its other signs."""
    return _PIECE.findall(word.lower())


class NgramModel(LanguageModel):
    """Interpolated n-grams with the discounting of Witten and Bell (1991).

    p(w | h) = (c(h w) + T(h) · p(w | h without its first piece)) / (c(h) + T(h)), T(h) the number of
    different pieces seen after h, down to a uniform distribution over all pieces seen, the end of a text, and
    one unknown piece. The probabilities after any context sum to 1. Ask it about other texts than it was
    made of.
    """

    def __init__(self, texts: Iterable[str], order: int = 3) -> None:
        """Count the n-grams of clean texts.

        Args:
            order: the longest n-grams' pieces.

        Raises:
            ConfigError: `order` is below 1.
        """
        check_at_least("order", order, 1)
        self.order = order
        self.vocabulary = {END, UNKNOWN}
        self._follows: dict[tuple[str, ...], Counter[str]] = {}
        self._log_probabilities: dict[tuple[str, ...], float] = {}
        for text in texts:
            self._count(text.split())
        self._totals = {context: follows.total() for context, follows in self._follows.items()}

    def probability(self, piece: str, context: Sequence[str]) -> float:
        """p(piece | context); pieces that were never seen are one, `UNKNOWN`."""
        piece = piece if piece in self.vocabulary else UNKNOWN
        value = 1 / len(self.vocabulary)
        for length in range(min(len(context), self.order - 1) + 1):
            before = tuple(context[len(context) - length :])
            follows = self._follows.get(before)
            if follows is None:
                break
            distinct = len(follows)
            value = (follows.get(piece, 0) + distinct * value) / (self._totals[before] + distinct)
        return value

    def perplexities(self, texts: Sequence[Sequence[str]]) -> list[float]:
        """As `LanguageModel`; the end of a text counts as a token, so every text has one."""
        return [self._perplexity(words) for words in texts]

    def _perplexity(self, words: Sequence[str]) -> float:
        grams = list(self._grams(words))
        return math.exp(-sum(self._log_probability(gram) for gram in grams) / len(grams))

    def _log_probability(self, gram: tuple[str, ...]) -> float:
        known = self._log_probabilities.get(gram)
        if known is None:
            known = math.log(self.probability(gram[-1], gram[:-1]))
            self._log_probabilities[gram] = known
        return known

    def _count(self, words: Sequence[str]) -> None:
        for gram in self._grams(words):
            self.vocabulary.add(gram[-1])
            for start in range(self.order):
                self._follows.setdefault(gram[start:-1], Counter())[gram[-1]] += 1

    def _grams(self, words: Sequence[str]) -> Iterable[tuple[str, ...]]:
        """Every piece of a text, and its end, behind the `order - 1` pieces before it."""
        row = [START] * (self.order - 1) + [piece for word in words for piece in pieces(word)] + [END]
        return (tuple(row[at - self.order + 1 : at + 1]) for at in range(self.order - 1, len(row)))
