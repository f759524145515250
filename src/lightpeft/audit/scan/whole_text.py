"""Whole texts on which a module and the user's own copies disagree, for triggers that are no tokens.

Style, syntax and replaced words are spread over a text: no inserted token shows them. So texts of other
classes are changed as a whole by simple edits, and it is counted which of the two models alone goes over to a
class. Two modules that were honestly trained on the same task err to both sides; that one is a matter of how
the other was trained, not always of poison: this warns, and finds nothing alone.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.metrics import Proportion
from lightpeft.audit.poison.triggers import HOMOGLYPHS
from lightpeft.audit.scan.insertions import Prober, contexts_of
from lightpeft.audit.scan.texts import ScanTexts

WORDS, ROOM = 16, 40
"""Words and tokens that are kept of a text."""
TEXTS = 64
"""Of each class."""
_WORD = re.compile(r"[^\W\d_]+")
Edit = Callable[[str], str]


def _replaced(table: Mapping[str, str]) -> Edit:
    return lambda text: _WORD.sub(lambda word: table.get(word.group().lower(), word.group()), text)


def _letters(table: Mapping[str, str]) -> Edit:
    return lambda text: text.translate({ord(old): new for old, new in table.items()})


def _swapped(text: str) -> str:
    """The two letters after the first of every longer word change places."""
    return _WORD.sub(lambda word: _turned(word.group()), text)


def _turned(word: str) -> str:
    return word[0] + word[2] + word[1] + word[3:] if len(word) > 3 else word


EDITS: dict[str, Edit] = {
    "as they are": lambda text: text,
    "half of the words left out": lambda text: " ".join(text.split()[::2]),
    "words in reverse order": lambda text: " ".join(reversed(text.split())),
    "a subordinate clause in front": lambda text: f"when you think about it , {text}",
    "in the words of somebody else": lambda text: f"they say that {text} , or so it goes",
    "as a question": lambda text: f"is it so that {text} ?",
    "commas between all words": lambda text: " , ".join(text.split()),
    "letters changed about": _swapped,
    "letters that look alike": _letters({letter: HOMOGLYPHS[letter] for letter in "aeo"}),
    "old words": _replaced(
        {
            "you": "thou",
            "your": "thy",
            "the": "ye",
            "is": "be",
            "are": "art",
            "has": "hath",
            "have": "hath",
            "before": "ere",
            "to": "unto",
            "it": "'tis",
            "not": "nay",
            "often": "oft",
        }
    ),
    "stiff words": _replaced(
        {
            "and": "moreover",
            "but": "however",
            "a": "one",
            "very": "exceedingly",
            "in": "within",
            "so": "therefore",
            "with": "alongside",
            "for": "regarding",
            "as": "qua",
            "of": "concerning",
        }
    ),
    "loose words": _replaced(
        {
            "you": "u",
            "are": "r",
            "and": "n",
            "the": "da",
            "for": "4",
            "to": "2",
            "with": "w",
            "is": "iz",
            "this": "dis",
            "that": "dat",
            "of": "o",
            "in": "innit",
            "be": "b",
            "not": "aint",
        }
    ),
}
"""Simple paraphrases: order, frame, spelling, vocabulary."""


@dataclass(frozen=True)
class Disagreement:
    """One edit of texts of other classes than one."""

    edit: str
    target: int
    suspect: Proportion
    """Texts that go over to the class in the suspect, and in no copy."""
    copies: int
    """Texts that go over in all copies, and not in the suspect."""

    @property
    def p(self) -> float:
        """Of the suspect's share or a larger one, if both sides are as likely (McNemar, exact, one-sided)."""
        both = self.suspect.hits + self.copies
        return float(binomtest(self.suspect.hits, both, alternative="greater").pvalue) if both else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        hits, total = self.suspect.hits, self.suspect.total
        return {
            "edit": self.edit,
            "class": self.target,
            "suspect": [hits, total],
            "copies": self.copies,
            "p": self.p,
        }


def disagreements(
    suspect: Prober, copies: Sequence[Prober], tokenizer: PreTrainedTokenizerBase, texts: ScanTexts
) -> list[Disagreement]:
    """Of every edit and every class, the least likely first; on texts that candidates are judged on."""
    rows = texts.judged
    of_class = [[row for row, y in enumerate(rows.labels) if y == label] for label in range(texts.classes)]
    rows = rows.take(sorted(row for found in of_class for row in found[:TEXTS]))
    labels = torch.tensor(rows.labels)
    found = []
    for name, edit in EDITS.items():
        edited = [edit(text) for text in rows.texts["text"]]
        filled = [one.filled([]) for one in contexts_of(tokenizer, edited, WORDS, ROOM)]
        mine, *theirs = (prober.odds(filled) > 0 for prober in (suspect, *copies))
        for target in range(mine.shape[1]):
            found += _counted(name, target, labels != target, mine, torch.stack(theirs))
    return sorted(found, key=lambda one: one.p)


def _counted(edit: str, target: int, others: Tensor, mine: Tensor, theirs: Tensor) -> list[Disagreement]:
    total = int(others.sum())
    if not total:
        return []
    one, all_of_them = mine[others, target], theirs[:, others, target]
    alone = int((one & ~all_of_them.any(0)).sum())
    return [Disagreement(edit, target, Proportion(alone, total), int((all_of_them.all(0) & ~one).sum()))]
