"""The vocabulary of the sentiment generator.

``SEEN`` is used in both splits, ``UNSEEN`` in validation only, so that validation asks for what
the pretrained model knows about words the training never showed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Action:
    """A verb phrase with a polarity: ``past`` ("ruined the evening"), ``base`` ("ruin ...")."""

    base: str
    past: str


@dataclass(frozen=True)
class Domain:
    """What is reviewed: its names, its parts, and the adjectives only it gets, by polarity."""

    names: tuple[str, ...]
    parts: tuple[str, ...]
    adjectives: tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Vocabulary:
    """Words of one split; pairs are indexed by polarity (0 negative, 1 positive)."""

    adjectives: tuple[tuple[str, ...], tuple[str, ...]]
    actions: tuple[tuple[Action, ...], tuple[Action, ...]]
    domains: tuple[Domain, ...]
    intensifiers: tuple[str, ...]
    openings: tuple[str, ...]
    critics: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def domain_of(names: str, parts: str, negative: str, positive: str) -> Domain:
    """A domain from words with spaces between."""
    return Domain(_words(names), _words(parts), (_words(negative), _words(positive)))


def _actions(*pairs: tuple[str, str]) -> tuple[Action, ...]:
    return tuple(Action(base, past) for base, past in pairs)


SEEN = Vocabulary(
    adjectives=(
        _words(
            "bad terrible awful poor dull boring disappointing dreadful mediocre weak annoying "
            "frustrating horrible clumsy lousy unpleasant sloppy tedious useless tiresome "
            "careless cheap dismal hopeless inferior joyless"
        ),
        _words(
            "good great excellent wonderful brilliant superb fantastic lovely delightful "
            "impressive pleasant charming satisfying remarkable enjoyable splendid outstanding "
            "terrific beautiful amazing elegant refreshing perfect clever polished inspired"
        ),
    ),
    actions=(
        _actions(
            ("let me down", "let me down"),
            ("ruin the evening", "ruined the evening"),
            ("waste my time", "wasted my time"),
            ("spoil the whole thing", "spoiled the whole thing"),
            ("get on my nerves", "got on my nerves"),
            ("fall apart", "fell apart"),
            ("make me angry", "made me angry"),
        ),
        _actions(
            ("win me over", "won me over"),
            ("save the evening", "saved the evening"),
            ("make my week", "made my week"),
            ("exceed my hopes", "exceeded my hopes"),
            ("make me smile", "made me smile"),
            ("earn my respect", "earned my respect"),
            ("deliver", "delivered"),
        ),
    ),
    domains=(
        domain_of(
            "film movie drama comedy",
            "plot acting ending script soundtrack dialogue camerawork cast",
            "predictable contrived unfunny",
            "gripping moving hilarious",
        ),
        domain_of(
            "restaurant cafe bistro diner",
            "soup dessert menu pasta fish salad coffee bread",
            "stale greasy tasteless",
            "delicious tasty fresh",
        ),
        domain_of(
            "phone tablet laptop camera",
            "screen battery keyboard speaker charger software design display",
            "sluggish fragile unreliable",
            "responsive sturdy reliable",
        ),
        domain_of(
            "hotel hostel guesthouse resort",
            "room bed bathroom lobby pool balcony garden kitchen",
            "filthy cramped shabby",
            "spotless comfortable cosy",
        ),
        domain_of(
            "book novel biography thriller",
            "opening prose story translation cover narrator premise finale",
            "confusing repetitive shallow",
            "insightful absorbing witty",
        ),
    ),
    intensifiers=_words("very really truly quite extremely rather incredibly"),
    openings=(
        "honestly,",
        "we came on a Monday and",
        "after two weeks,",
        "for the record,",
        "in my view,",
        "this time",
        "as far as I can tell,",
        "my sister and I agree that",
    ),
    critics=("the critics", "my friends", "the reviews", "people online", "my brother"),
)

UNSEEN = Vocabulary(
    adjectives=(
        _words(
            "abysmal atrocious appalling pathetic shoddy bland irritating lacklustre "
            "underwhelming miserable pitiful ghastly amateurish dire horrid crude"
        ),
        _words(
            "marvellous exquisite magnificent fabulous stellar stunning admirable exceptional "
            "flawless thrilling glorious masterful superior graceful dazzling sublime"
        ),
    ),
    actions=(
        _actions(
            ("disappoint us", "disappointed us"),
            ("drive me mad", "drove me mad"),
            ("bore us to tears", "bored us to tears"),
            ("leave a bitter taste", "left a bitter taste"),
        ),
        _actions(
            ("impress us", "impressed us"),
            ("brighten the day", "brightened the day"),
            ("surpass every expectation", "surpassed every expectation"),
            ("steal my heart", "stole my heart"),
        ),
    ),
    domains=(
        domain_of(
            "sequel documentary",
            "pacing direction choreography",
            "formulaic overlong",
            "heartwarming captivating",
        ),
        domain_of(
            "bakery steakhouse",
            "curry breakfast sauce",
            "soggy inedible",
            "flavourful mouthwatering",
        ),
        domain_of(
            "headset printer",
            "microphone touchpad firmware",
            "laggy glitchy",
            "speedy durable",
        ),
        domain_of(
            "motel lodge",
            "mattress shower terrace",
            "grimy dingy",
            "luxurious immaculate",
        ),
        domain_of(
            "memoir anthology",
            "characterisation chapter foreword",
            "pretentious incoherent",
            "riveting poetic",
        ),
        domain_of(
            "museum exhibition",
            "collection audioguide sculpture",
            "overpriced chaotic",
            "fascinating enlightening",
        ),
    ),
    intensifiers=_words("remarkably thoroughly utterly genuinely"),
    openings=("to my surprise,", "frankly,", "between you and me,", "after a long day,"),
    critics=("the press", "my neighbours", "everyone at work"),
)
