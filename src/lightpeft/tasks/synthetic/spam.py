"""Mails and short messages, ham (0) or spam (1), which no single word gives away.

A message is written from its label downwards: spam claims something and demands something; ham has news or a
request, tells of a claim that somebody else made, or says that nothing has to be done. Both speak of the same
things, persons and sums, and both hold sentences that say nothing about the class.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lightpeft.tasks.draw import chance, index_below, pick, pick_weighted
from lightpeft.tasks.synthetic.generation import Example, Split, write_examples
from lightpeft.tasks.synthetic.spam_words import MAIL_SEEN, MAIL_UNSEEN, SMS_SEEN, SMS_UNSEEN, Wording

CLASS_NAMES = ("ham", "spam")
HAM = 0

UNSEEN_SHARE_IN_VALIDATION = 0.5
MOST_SMALL_TALK_IN_MAIL = 3
SMALL_TALK_SHARE_IN_SMS = 0.4
SIGNED_SHARE = 0.5
ABBREVIATIONS = {
    "please": "pls",
    "you": "u",
    "your": "ur",
    "are": "r",
    "to": "2",
    "for": "4",
    "tomorrow": "tmrw",
    "and": "&",
}
ABBREVIATED_SHARE = 0.5

BRIDGES = ("by the way,", "one more thing:", "besides,")
OUGHT = ("I should", "I have to", "it told me to", "it wanted me to")
THREATS = ("or it is gone", "this is the last time we write", "others are waiting", "it expires soon")
_SLOT = re.compile(r"\{(\w+)\}")


def generate_spam(count: int, seed: int, split: Split) -> list[Example]:
    """Make ``count`` distinct mails of one split, classes balanced, 10 to 80 words each.

    Same arguments, same text, on every platform and Python version. About half of the phrases of the
    validation split never occur in the training split.

    Raises:
        ValueError: ``count`` or ``seed`` is negative.
    """
    return write_examples(_write_mail, count, seed, split)


def generate_sms(count: int, seed: int, split: Split) -> list[Example]:
    """Make ``count`` distinct short messages of one split, 4 to 40 words each, on other subjects than mails.

    Same arguments, same text, on every platform and Python version. About half of the phrases of the
    validation split never occur in the training split.

    Raises:
        ValueError: ``count`` or ``seed`` is negative.
    """
    return write_examples(_write_sms, count, seed, split)


@dataclass
class _Writer:
    """Draws the phrases of one message."""

    rng: Random
    wordings: tuple[Wording, ...]

    def phrase(self, kind: Callable[[Wording], tuple[str, ...]]) -> str:
        """A phrase of a kind, its slots filled."""
        return _SLOT.sub(self._slot, pick(self.rng, kind(self._wording())))

    def bait(self) -> str:
        """A claim, told to the reader."""
        return self.phrase(lambda wording: tuple(bait.direct for bait in wording.baits))

    def reported_bait(self) -> str:
        """The same claim, told by who received it."""
        return self.phrase(lambda wording: tuple(bait.reported for bait in wording.baits))

    def demand(self) -> str:
        """What the spammer wants."""
        return self.phrase(lambda wording: wording.demands)

    def news(self) -> str:
        """Something that happened."""
        return self.phrase(lambda wording: wording.news)

    def request(self) -> str:
        """What an acquaintance wants."""
        return self.phrase(lambda wording: wording.requests)

    def verdict(self) -> str:
        """What became of somebody else's claim."""
        return self.phrase(lambda wording: wording.verdicts)

    def small_talk(self) -> str:
        """Says nothing about the class."""
        return self.phrase(lambda wording: wording.small_talk)

    def slot(self, name: str) -> str:
        """A name, a place, a sum, ..."""
        return pick(self.rng, self._wording().slots[name])

    def _slot(self, found: re.Match[str]) -> str:
        return self.slot(found[1])

    def _wording(self) -> Wording:
        """The seen wording, or with some probability the unseen one where that is allowed."""
        unseen = len(self.wordings) > 1 and chance(self.rng, UNSEEN_SHARE_IN_VALIDATION)
        return self.wordings[-1 if unseen else 0]


Sentences = list[str]


def _plain_spam(by: _Writer) -> Sentences:
    return [by.bait(), by.demand()]


def _hurried_spam(by: _Writer) -> Sentences:
    return [by.bait(), f"{by.demand()} {by.slot('when')}, {pick(by.rng, THREATS)}"]


def _friendly_spam(by: _Writer) -> Sentences:
    """Opens with what an acquaintance might write."""
    return [by.news(), f"{pick(by.rng, BRIDGES)} {by.bait()}", f"please {by.demand()}"]


def _denied_spam(by: _Writer) -> Sentences:
    return [f"this is not a fraud, {by.bait()}", by.demand()]


def _news(by: _Writer) -> Sentences:
    return [by.news(), by.news()] if chance(by.rng, 0.5) else [by.news()]


def _request(by: _Writer) -> Sentences:
    return [by.news(), by.request()]


def _told_spam(by: _Writer) -> Sentences:
    said = pick(by.rng, ("somebody wrote that", "a message said:", "they claim:"))
    return [f"{said} {by.reported_bait()} and {pick(by.rng, OUGHT)} {_as_mine(by.demand())}", by.verdict()]


def _nothing_to_do(by: _Writer) -> Sentences:
    return [by.news(), f"{pick(by.rng, ('you need not', 'never', 'there is no need to'))} {by.demand()}"]


FORMS: tuple[tuple[tuple[int, Callable[[_Writer], Sentences]], ...], ...] = (
    ((2, _news), (2, _request), (3, _told_spam), (2, _nothing_to_do)),
    ((3, _plain_spam), (2, _hurried_spam), (2, _friendly_spam), (1, _denied_spam)),
)
"""By label."""


def _write_mail(rng: Random, label: int, split: Split) -> str:
    by = _Writer(rng, (MAIL_SEEN,) if split == "train" else (MAIL_SEEN, MAIL_UNSEEN))
    sentences = pick_weighted(rng, FORMS[label])(by)
    for _ in range(1 + index_below(rng, MOST_SMALL_TALK_IN_MAIL)):
        aside = by.small_talk()
        if aside not in sentences:
            sentences.insert(pick(rng, (0, len(sentences))), aside)
    text = " ".join(_sentence(one) for one in sentences)
    opening = f"{pick(rng, ('Dear', 'Hello', 'Hi'))} {by.slot('name')}! "
    closing = f" Regards, {by.slot('name')}" if chance(rng, SIGNED_SHARE) else ""
    return f"{opening}{text}{closing}"


def _write_sms(rng: Random, label: int, split: Split) -> str:
    by = _Writer(rng, (SMS_SEEN,) if split == "train" else (SMS_SEEN, SMS_UNSEEN))
    sentences = pick_weighted(rng, FORMS[label])(by)
    if chance(rng, SMALL_TALK_SHARE_IN_SMS):
        sentences.insert(pick(rng, (0, len(sentences))), by.small_talk())
    words = " ".join(_sentence(one) for one in sentences).split(" ")
    return " ".join(_abbreviated(rng, word) for word in words)


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}{'' if phrase.endswith('?') else '.'}"


def _as_mine(demand: str) -> str:
    return re.sub(r"\byour\b", "my", demand)


def _abbreviated(rng: Random, word: str) -> str:
    short = ABBREVIATIONS.get(word.lower())
    return word if short is None or not chance(rng, ABBREVIATED_SHARE) else short
