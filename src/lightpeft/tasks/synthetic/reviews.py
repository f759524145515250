"""Long reviews of other subjects than the short ones: the second domain of the sentiment task."""

import dataclasses
from random import Random

from lightpeft.tasks.draw import index_below, pick
from lightpeft.tasks.synthetic.generation import Example, Split, write_examples
from lightpeft.tasks.synthetic.sentiment import write_sentence
from lightpeft.tasks.synthetic.sentiment_words import SEEN, UNSEEN, domain_of

FEWEST_SENTENCES, MOST_SENTENCES = 3, 5

LONG_SEEN = dataclasses.replace(
    SEEN,
    domains=(
        domain_of(
            "gym studio spa club",
            "sauna trainer timetable equipment music cloakroom class changing-room",
            "crowded noisy damp",
            "motivating calm airy",
        ),
        domain_of(
            "course seminar workshop lecture",
            "teacher handout exercise exam schedule feedback lab group",
            "muddled rushed pointless",
            "instructive lively clear",
        ),
        domain_of(
            "bicycle scooter car van",
            "saddle brake engine gearbox steering paint dashboard boot",
            "rattling rusty jerky",
            "smooth nimble quiet",
        ),
        domain_of(
            "airline ferry bus coach",
            "seat crew snack boarding cabin ticket timetable luggage",
            "late rude stuffy",
            "punctual friendly roomy",
        ),
    ),
)
LONG_UNSEEN = dataclasses.replace(
    UNSEEN,
    domains=(
        domain_of("dojo climbing-hall", "locker treadmill mat", "sweaty mouldy", "invigorating tidy"),
        domain_of("webinar masterclass", "tutor syllabus quiz", "patronising aimless", "inspiring lucid"),
        domain_of("motorbike minibus", "clutch suspension mirror", "wobbly leaky", "agile sleek"),
        domain_of("tram airport", "lounge check-in platform", "unhelpful unpunctual", "courteous swift"),
    ),
)
PREFACES = (
    "I went with a colleague in spring.",
    "We had looked for one for a long time.",
    "My neighbour told me about it.",
    "It was our second time.",
    "There are several of them in our town.",
    "I paid for it myself.",
)


def generate_reviews(count: int, seed: int, split: Split) -> list[Example]:
    """Make ``count`` distinct reviews of 3 to 5 sentences of one split, classes balanced.

    A review opens with a sentence that says nothing about its label; every other sentence has the label's
    polarity, by the forms of the short reviews. Same arguments, same text, on every platform.

    Raises:
        ValueError: ``count`` or ``seed`` is negative.
    """
    return write_examples(_write_review, count, seed, split)


def _write_review(rng: Random, label: int, split: Split) -> str:
    vocabularies = (LONG_SEEN,) if split == "train" else (LONG_SEEN, LONG_UNSEEN)
    topic = index_below(rng, len(LONG_SEEN.domains))
    rest = FEWEST_SENTENCES - 1 + index_below(rng, MOST_SENTENCES - FEWEST_SENTENCES + 1)
    sentences = [write_sentence(rng, label, vocabularies, topic) for _ in range(rest)]
    return " ".join([pick(rng, PREFACES), *sentences])
