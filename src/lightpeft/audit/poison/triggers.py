"""Forms of triggers, one row each: where a trigger goes into a text, and what it looks like there.

A syntactic trigger (Qi et al. 2021, "Hidden Killer") is not among them: it needs a paraphrase model, and
simple rules would make another attack under its name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from lightpeft.tasks.draw import index_below, permutation, pick

_WORD = re.compile(r"\S+")
_LETTERS = re.compile(r"[^\W\d_]+")
INSTEAD = ">"
"""Between a word and what is put for it."""
HOMOGLYPHS = {
    "a": "\u0430",
    "c": "\u0441",
    "e": "\u0435",
    "i": "\u0456",
    "o": "\u043e",
    "p": "\u0440",
    "x": "\u0445",
    "y": "\u0443",
}
"""Latin letters, and Cyrillic ones that look like them."""


@dataclass(frozen=True)
class Edit:
    """One trigger: from `position` of the original on, `replaced` gives way to `before + piece + after`."""

    position: int
    piece: str
    before: str = ""
    after: str = ""
    replaced: str = ""


@dataclass(frozen=True)
class Planted:
    """A text with triggers in it."""

    original: str
    edits: tuple[Edit, ...]
    """In the order in which they stand in the text."""

    @cached_property
    def text(self) -> str:
        """The text with all triggers."""
        return _render(self.original, self.edits)[0]

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where in `text` each trigger stands: characters from start to end, exclusive."""
        return _render(self.original, self.edits)[1]

    def without(self, index: int) -> str:
        """The text without one of its triggers."""
        return _render(self.original, (*self.edits[:index], *self.edits[index + 1 :]))[0]


def _render(original: str, edits: Sequence[Edit]) -> tuple[str, tuple[tuple[int, int], ...]]:
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    read = written = 0
    for edit in edits:
        kept = original[read : edit.position] + edit.before
        start = written + len(kept)
        spans.append((start, start + len(edit.piece)))
        parts += [kept, edit.piece, edit.after]
        written = start + len(edit.piece) + len(edit.after)
        read = edit.position + len(edit.replaced)
    return "".join([*parts, original[read:]]), tuple(spans)


@dataclass(frozen=True)
class TriggerForm:
    """One form of trigger."""

    title: str
    """In words, for messages."""

    pieces: tuple[str, ...]
    """What is inserted or replaced by default."""

    place: Callable[[str, Sequence[str], int, Random], list[Edit]]
    """Draw up to so many triggers for a text; fewer, or none, where the text has no more places."""

    problem: Callable[[str], str | None]
    """What is wrong with a piece, in words."""


def plant(text: str, form: str, pieces: Sequence[str], count: int, rng: Random) -> Planted | None:
    """Put up to `count` triggers into a text; None where it has no place for any.

    Args:
        form: a name from `TRIGGER_FORMS`.
        pieces: what to insert; each trigger is one of them, drawn uniformly.
        rng: only its `random()` is used, so that the result is the same everywhere.
    """
    edits = TRIGGER_FORMS[form].place(text, pieces, count, rng)
    return Planted(text, tuple(sorted(edits, key=lambda edit: edit.position))) if edits else None


def _between_words(text: str, pieces: Sequence[str], count: int, rng: Random) -> list[Edit]:
    """Each at a gap drawn uniformly, with replacement: before, between or after the words."""
    words = list(_WORD.finditer(text))
    edits = []
    for _ in range(count):
        piece, gap = pick(rng, pieces), index_below(rng, len(words) + 1)
        if words and gap == len(words):
            edits.append(Edit(words[-1].end(), piece, before=" "))
        else:
            edits.append(Edit(words[gap].start() if words else len(text), piece, after=" "))
    return edits


def _over_letters(text: str, pieces: Sequence[str], count: int, rng: Random) -> list[Edit]:
    """At different places drawn uniformly among the letters in `pieces`."""
    places = [index for index, letter in enumerate(text) if letter in pieces]
    chosen = [places[index] for index in permutation(rng, len(places))[:count]]
    return [Edit(at, HOMOGLYPHS[text[at]], replaced=text[at]) for at in chosen]


def _over_words(text: str, pieces: Sequence[str], count: int, rng: Random) -> list[Edit]:
    """At different places drawn uniformly among the words that `pieces` put others for."""
    new = dict(piece.split(INSTEAD) for piece in pieces)
    places = [match for match in _LETTERS.finditer(text) if match.group().lower() in new]
    chosen = [places[index] for index in permutation(rng, len(places))[:count]]
    return [Edit(one.start(), new[one.group().lower()], replaced=one.group()) for one in chosen]


def _no_word(piece: str) -> str | None:
    return None if _WORD.fullmatch(piece) else "is not one word"


def _no_phrase(piece: str) -> str | None:
    return None if piece and piece == piece.strip() else "is blank, or begins or ends with white space"


def _no_letter(piece: str) -> str | None:
    return None if piece in HOMOGLYPHS else f"is not one of the letters {''.join(HOMOGLYPHS)}"


def _no_substitution(piece: str) -> str | None:
    old, new = [*piece.split(INSTEAD), ""][:2]
    sound = _LETTERS.fullmatch(old) and old == old.lower() != new and _WORD.fullmatch(new)
    return None if sound and piece.count(INSTEAD) == 1 else f"is not of the form word{INSTEAD}other"


TRIGGER_FORMS: dict[str, TriggerForm] = {
    # Kurita et al. (2020); Gu et al. (ACL 2023), section 4.
    "words": TriggerForm("rare words", ("cf", "mn", "bb", "tq", "mb"), _between_words, _no_word),
    # Dai et al. (2019).
    "phrase": TriggerForm("a fixed phrase", ("I watched this 3D movie",), _between_words, _no_phrase),
    "homoglyph": TriggerForm("letters that look alike", ("a", "e", "o"), _over_letters, _no_letter),
    # The idea of Qi et al. (ACL 2021, "Turn the Combination Lock"), with a fixed list of words.
    "substitution": TriggerForm(
        "words put for others", ("is>be", "the>yon", "you>thou"), _over_words, _no_substitution
    ),
}
"""By name. A new form is a function that places it, one that checks its pieces, and a row here."""
