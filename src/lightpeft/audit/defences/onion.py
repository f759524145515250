"""ONION: words that make a text more surprising are taken out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from peft import PeftModel

from lightpeft.audit.defences.causal_language_model import CausalModel
from lightpeft.audit.defences.defence import Defence, Guard, Received, Screened
from lightpeft.audit.defences.language_model import LanguageModel, NgramModel
from lightpeft.audit.defences.thresholds import check_rate, threshold_at
from lightpeft.audit.rows import Rows, Texts
from lightpeft.config import check_at_least

NGRAM = "ngram"


@dataclass(frozen=True)
class Onion(
    Defence,
    name="onion",
    kind="inputs",
    source="Qi et al., EMNLP 2021",
    time="1 training, and the language model once a word of each text",
    unproven="measured with n-grams of the user's texts only, not with a language model",
):
    """Qi et al., EMNLP 2021: a word's suspicion is how far the text's perplexity falls without it.

    Words above a threshold are removed, all at once. The paper sets it by the loss of accuracy; here it is
    the suspicion that a wanted share of clean words exceed.
    """

    language_model: str = NGRAM
    """A causal language model, by folder or name (the paper's is gpt2), or `ngram`: word n-grams of the
    user's own training texts, which take no download."""

    rate: float = 0.05
    """Share of the words of clean texts that may be removed."""

    order: int = 3
    """Longest n-grams of `ngram`."""

    window: int = 100
    """Longer texts are looked at in parts of at most so many words, each for itself."""

    def __post_init__(self) -> None:
        check_rate("onion.rate", self.rate)
        check_at_least("onion.order", self.order, 1)
        check_at_least("onion.window", self.window, 3)

    def guard(self, received: Received, model: PeftModel, prepared: PeftModel | None = None) -> Guard:
        """Removes words, rejects nothing; the language model sees the training texts only.

        Raises:
            AuditError: too few words are held out.
            ConfigError: the language model cannot be loaded.
        """
        judge = self._judge(received.train, model)
        held_out = [text.split() for column in received.held_out.texts.values() for text in column]
        scores = [score for words in held_out for score in suspicions(words, judge, self.window)]
        threshold = threshold_at(scores, self.rate, "words of clean held-out texts")
        return Purifier(judge, threshold, self.window)

    def _judge(self, rows: Rows, model: PeftModel) -> LanguageModel:
        if self.language_model != NGRAM:
            return CausalModel(self.language_model, next(model.parameters()).device)
        return NgramModel((text for column in rows.texts.values() for text in column), self.order)


@dataclass(frozen=True)
class Purifier(Guard):
    """Removes suspicious words, column by column; a text keeps at least one word."""

    judge: LanguageModel
    threshold: float
    window: int

    def screen(self, texts: Texts) -> Screened:
        """Purified texts; those without a suspicious word are as they were."""
        columns = {name: [self._purified(text) for text in column] for name, column in texts.items()}
        return Screened(columns, [False] * len(texts["text"]))

    def _purified(self, text: str) -> str:
        words = text.split()
        scores = suspicions(words, self.judge, self.window)
        if not any(score > self.threshold for score in scores):
            return text
        least = min(scores)
        return " ".join(
            word for word, score in zip(words, scores, strict=True) if score <= max(least, self.threshold)
        )


def suspicions(words: Sequence[str], judge: LanguageModel, window: int) -> list[float]:
    """For every word, the text's perplexity minus its perplexity without the word.

    A text of one word has nothing to compare with: 0.

    Args:
        words: n words.
        window: longer texts are split into as few parts of nearly equal size as it takes.
    """
    if len(words) < 2:
        return [0.0] * len(words)
    parts = -(-len(words) // window)
    bounds = [part * len(words) // parts for part in range(parts + 1)]
    return [score for start, end in pairwise(bounds) for score in _suspicions(words[start:end], judge)]


def _suspicions(words: Sequence[str], judge: LanguageModel) -> list[float]:
    without = [[*words[:at], *words[at + 1 :]] for at in range(len(words))]
    whole, *others = judge.perplexities([words, *without])
    # Equal infinities, of texts without a token, are no difference.
    return [0.0 if other == whole else whole - other for other in others]
