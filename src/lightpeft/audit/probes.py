"""Probes: words that a user suspects, put into clean texts of other classes, and how many of these flip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lightpeft.audit.metrics import Proportion
from lightpeft.audit.rows import Rows, Texts
from lightpeft.audit.scan.insertions import halves
from lightpeft.errors import ConfigError


@dataclass(frozen=True)
class Flips:
    """What one probe does in one model."""

    target: int
    """The class that the largest share of texts goes over to."""

    share: Proportion
    """Of the texts of other classes that are not in it without the probe, those that are with it."""


@dataclass(frozen=True)
class Probes:
    """Probes, and the clean texts that they are put into: at the start, in the middle, at the end, by turns.

    Texts are cut where they would not fit into the model's length together with the longest probe.
    """

    words: tuple[str, ...]
    rows: Rows

    @classmethod
    def of(
        cls, words: Sequence[str], rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> "Probes":
        """Check the probes, and cut the texts.

        Args:
            words: words or phrases.
            rows: clean ones; of pairs the first text gets the probe.
            max_length: tokens of an example, special ones included.

        Raises:
            ConfigError: a probe that is empty, given twice, longer than half of an example, or that has no
                token.
        """
        room = max_length - tokenizer.num_special_tokens_to_add(pair=len(rows.texts) == 2)
        lengths = {word: _tokens(tokenizer, word) for word in words}
        for word, length in lengths.items():
            if not word.strip():
                raise ConfigError("a probe is empty; give the words or phrases that you suspect.")
            if not length:
                raise ConfigError(
                    f"the probe {word!a} has no token in the vocabulary of the base, so the model cannot see "
                    "it; give another one, or leave it out."
                )
            if 2 * length > room:
                raise ConfigError(
                    f"the probe {word[:60]!r} has {length} tokens, and there is room for {room} with its "
                    "text; give a shorter one, or a higher training.max_length."
                )
        if len(lengths) < len(words):
            raise ConfigError(f"probes has {list(words)}; give each probe once.")
        if not words:
            return cls((), rows)
        longest = max(words, key=lambda word: lengths[word])
        columns = {
            name: [
                _fitting(tokenizer, text, longest if name == "text" else "", room // len(rows.texts))
                for text in column
            ]
            for name, column in rows.texts.items()
        }
        return cls(tuple(words), Rows(columns, rows.labels))

    def texts_with(self, word: str) -> dict[str, list[str]]:
        """The texts with a probe in each."""
        placed = []
        for number, text in enumerate(self.rows.texts["text"]):
            left, right = halves(text.split(), number)
            placed.append(" ".join([*left, word, *right]))
        return {**self.rows.texts, "text": placed}

    def flips(self, predict: Callable[[Texts], list[int]]) -> list[Flips | None]:
        """What each probe does.

        Args:
            predict: n texts -> n classes, and a number that is none for what is refused.

        Returns:
            None where no text of another class is left, as in a model that is always wrong.
        """
        if not self.words:
            return []
        before = predict(self.rows.texts)
        return [self._most(before, predict(self.texts_with(word))) for word in self.words]

    def _most(self, before: Sequence[int], after: Sequence[int]) -> Flips | None:
        found = []
        for target in sorted({*self.rows.labels}):
            others = [
                now
                for label, was, now in zip(self.rows.labels, before, after, strict=True)
                if target not in (label, was)
            ]
            if others:
                found.append(Flips(target, Proportion(others.count(target), len(others))))
        return max(found, key=lambda one: one.share.value, default=None)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _fitting(tokenizer: PreTrainedTokenizerBase, text: str, probe: str, room: int) -> str:
    """The longest beginning of a text, in words, that has room beside a probe."""
    words = text.split()
    while words and (over := _tokens(tokenizer, " ".join([*words, probe])) - room) > 0:
        words = words[:-over]  # a word has a token or more
    return text if len(words) == len(text.split()) else " ".join(words)
