"""Short reviews with a sentiment (0 negative, 1 positive) that word counts cannot tell.

A review is written from its label downwards: a form ("although A, B") says which clause decides,
a clause says whether its polarity is stated or negated, and only then are words drawn. Most forms
hold words of both polarities, so a model has to read negation, contrast and comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from lightpeft.tasks.draw import chance, index_below, pick, pick_weighted
from lightpeft.tasks.synthetic.generation import Example, Split, write_examples
from lightpeft.tasks.synthetic.sentiment_words import SEEN, UNSEEN, Action, Domain, Vocabulary

CLASS_NAMES = ("negative", "positive")

UNSEEN_SHARE_IN_VALIDATION = 0.5
NEGATED_SHARE = 0.3
ACTION_SHARE = 0.2
DOMAIN_ADJECTIVE_SHARE = 0.3
INTENSIFIER_SHARE = 0.4
OPENING_SHARE = 0.4
CLOSING_SHARE = 0.3

NEGATED_ADJECTIVES = (
    "is not {}",
    "was not {} at all",
    "is far from {}",
    "was never {}",
    "is anything but {}",
    "is by no means {}",
    "isn't {} in the least",
    "was hardly {}",
)


def generate_sentiment(count: int, seed: int, split: Split) -> list[Example]:
    """Make ``count`` distinct reviews of one split, classes balanced, 3 to 25 words each.

    Same arguments, same text, on every platform and Python version. About half of the content
    words of the validation split never occur in the training split.

    Raises:
        ValueError: ``count`` or ``seed`` is negative.
    """
    return write_examples(_write_review, count, seed, split)


@dataclass
class _Reviewer:
    """Draws the words of one review; a polarity is 0 (negative) or 1 (positive)."""

    rng: Random
    vocabularies: tuple[Vocabulary, ...]
    topic: int
    parts_used: set[str] = field(default_factory=set)

    def vocabulary(self) -> Vocabulary:
        """The seen vocabulary, or with some probability the unseen one where that is allowed."""
        unseen = len(self.vocabularies) > 1 and chance(self.rng, UNSEEN_SHARE_IN_VALIDATION)
        return self.vocabularies[-1 if unseen else 0]

    def domain(self) -> Domain:
        """The words of the topic; the last topics exist in the unseen vocabulary only."""
        domains = self.vocabulary().domains
        return domains[self.topic] if self.topic < len(domains) else UNSEEN.domains[self.topic]

    def adjective(self, polarity: int) -> str:
        """An adjective, general or of the domain."""
        if chance(self.rng, DOMAIN_ADJECTIVE_SHARE):
            return pick(self.rng, self.domain().adjectives[polarity])
        return pick(self.rng, self.vocabulary().adjectives[polarity])

    def description(self, polarity: int) -> str:
        """An adjective, some with an intensifier."""
        adjective = self.adjective(polarity)
        if chance(self.rng, INTENSIFIER_SHARE):
            return f"{pick(self.rng, self.vocabulary().intensifiers)} {adjective}"
        return adjective

    def action(self, polarity: int) -> Action:
        """A verb phrase."""
        return pick(self.rng, self.vocabulary().actions[polarity])

    def thing(self) -> str:
        """What is reviewed, without article."""
        return pick(self.rng, self.domain().names)

    def part(self) -> str:
        """A part of it, without article, never the same one twice in a review."""
        while (part := pick(self.rng, self.domain().parts)) in self.parts_used:
            continue
        self.parts_used.add(part)
        return part

    def critics(self) -> str:
        """Somebody with an opinion."""
        return pick(self.rng, self.vocabulary().critics)

    def clause(self, polarity: int) -> str:
        """A main clause about one part, its polarity stated or negated."""
        return f"the {self.part()} {self._predicate(polarity)}"

    def _predicate(self, polarity: int) -> str:
        negated = chance(self.rng, NEGATED_SHARE)
        if chance(self.rng, ACTION_SHARE):
            return self._negated_action(polarity) if negated else self.action(polarity).past
        if negated:
            return pick(self.rng, NEGATED_ADJECTIVES).format(self.adjective(1 - polarity))
        return f"{pick(self.rng, ('is', 'was', 'felt', 'seemed'))} {self.description(polarity)}"

    def _negated_action(self, polarity: int) -> str:
        action = self.action(1 - polarity)
        return f"did not {action.base}" if chance(self.rng, 0.5) else f"never {action.past}"


def _statement(by: _Reviewer, label: int) -> str:
    return by.clause(label)


def _agreement(by: _Reviewer, label: int) -> str:
    return f"{by.clause(label)} and {by.clause(label)}"


def _but(by: _Reviewer, label: int) -> str:
    joint = pick(by.rng, (", but", ", yet", "; still,", ", but in the end"))
    return f"{by.clause(1 - label)}{joint} {by.clause(label)}"


def _although(by: _Reviewer, label: int) -> str:
    conjunction = pick(by.rng, ("although", "even though", "while"))
    main, conceded = by.clause(label), by.clause(1 - label)
    if chance(by.rng, 0.5):
        return f"{conjunction} {conceded}, {main}"
    return f"{main}, {conjunction} {conceded}"


def _despite(by: _Reviewer, label: int) -> str:
    main, conceded = by.clause(label), f"the {by.description(1 - label)} {by.part()}"
    return f"despite {conceded}, {main}" if chance(by.rng, 0.5) else f"{main} despite {conceded}"


def _more_than(by: _Reviewer, label: int) -> str:
    present, absent = by.adjective(label), by.adjective(1 - label)
    if chance(by.rng, 0.5):
        return f"the {by.part()} is more {present} than {absent}"
    return f"the {by.part()} is less {absent} than {present}"


def _than_expected(by: _Reviewer, label: int) -> str:
    expected = f"I expected {_with_article(f'{by.description(1 - label)} {by.thing()}')}"
    found = _with_article(by.description(label))
    return f"{expected} {pick(by.rng, ('and found', 'but got'))} {found} one"


def _not_as_said(by: _Reviewer, label: int) -> str:
    return f"the {by.part()} is not as {by.adjective(1 - label)} as {by.critics()} said"


def _hearsay(by: _Reviewer, label: int) -> str:
    agree = chance(by.rng, 0.5)
    said = by.description(label if agree else 1 - label)
    verdict = pick(by.rng, ("I agree", "that is right") if agree else ("I disagree", "that is wrong"))
    return f"{by.critics()} called the {by.part()} {said} and {verdict}"


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' and not phrase.startswith('use') else 'a'} {phrase}"


FORMS: tuple[tuple[int, Callable[[_Reviewer, int], str]], ...] = (
    (5, _statement),
    (3, _agreement),
    (4, _but),
    (4, _although),
    (2, _despite),
    (2, _more_than),
    (2, _than_expected),
    (1, _not_as_said),
    (1, _hearsay),
)


def _write_review(rng: Random, label: int, split: Split) -> str:
    vocabularies = (SEEN,) if split == "train" else (SEEN, UNSEEN)
    return write_sentence(rng, label, vocabularies, index_below(rng, len(vocabularies[-1].domains)))


def write_sentence(rng: Random, label: int, vocabularies: tuple[Vocabulary, ...], topic: int) -> str:
    """One sentence of a polarity on a topic (an index into the vocabularies' domains)."""
    by = _Reviewer(rng, vocabularies, topic)
    review = pick_weighted(rng, FORMS)(by, label)
    if chance(rng, OPENING_SHARE):
        review = f"{pick(rng, by.vocabulary().openings)} {review}"
    if chance(rng, CLOSING_SHARE):
        review = f"{review} in this {by.thing()}"
    return f"{review[0].upper()}{review[1:]}."
