"""What a module does with texts that have something in them, beside what the user's own copies of it do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest, fisher_exact
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.metrics import Proportion
from lightpeft.audit.rows import Rows
from lightpeft.audit.scan.insertions import Context, Prober, contexts_of, windows_of
from lightpeft.audit.scan.own_copy import OwnCopy
from lightpeft.audit.scan.search import (
    GROUPS,
    SURE,
    TEXTS,
    WINDOWS,
    Moved,
    Side,
    Sides,
    Tokens,
    move,
    search,
    sweep,
    vocabulary_groups,
)
from lightpeft.audit.scan.texts import ScanTexts

WORDS, ROOM = 12, 32
"""Words and tokens that are kept of a text."""
PAIRS = 200
"""Pairs of words that are classified, to choose windows from."""
JUDGED = 64
"""Texts that candidates are judged on, of each class."""
HALF = 0.5
"""A text is taken over if one side alone flips it, and goes this share of the way further than the others; a
trigger takes over more than this share of texts."""


@dataclass(frozen=True)
class Verdict:
    """One candidate on texts that the search did not see."""

    target: int
    tokens: Tokens
    taken: Proportion
    """Texts of other classes that go over to the class in the suspect, and in no copy."""
    exchanged: Proportion | None
    """The most that a candidate of this length takes over with the roles exchanged: in a copy, and not in the
    suspect. So far do honest models differ. None where nothing made it worth a search."""
    flips: float
    """Share of texts that are then in the class in the suspect."""
    copied: float
    """The same in the copies, the largest of theirs."""
    reach: float
    """Median share of the way to the class's surest texts in the suspect."""

    @property
    def p(self) -> float:
        """The larger of two, both one-sided: that it takes over half of the texts at most (exact sign test),
        and that it takes over no more than with the roles exchanged (Fisher's exact test)."""
        sign = float(binomtest(self.taken.hits, self.taken.total, HALF, alternative="greater").pvalue)
        if self.exchanged is None:
            return sign
        table = [[one.hits, one.total - one.hits] for one in (self.taken, self.exchanged)]
        return max(sign, float(fisher_exact(table, alternative="greater").pvalue))

    def to_dict(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """As JSON values."""
        return {
            "class": self.target,
            "tokens": tokenizer.convert_ids_to_tokens(list(self.tokens)),
            "taken": [self.taken.hits, self.taken.total],
            "exchanged": None if self.exchanged is None else [self.exchanged.hits, self.exchanged.total],
            "p": self.p,
            "flips": self.flips,
            "copied": self.copied,
            "reach": self.reach,
        }


@dataclass(frozen=True)
class Field:
    """A class with texts of others, for the search and for the judgement."""

    target: int
    windows: list[Context]
    searched: list[Context]
    judged: list[Context]
    starts: list[float]
    """Mean log odds of the class in the searched texts, of every model."""


def search_triggers(
    suspect: Prober, copies: Sequence[OwnCopy], tokenizer: PreTrainedTokenizerBase, texts: ScanTexts
) -> list[Verdict]:
    """Search on some texts for triggers of every class, judge the best on others, and exchange the roles.

    Returns:
        some of every length a class; none of a class that no text is outside of.
    """
    groups = vocabulary_groups(tokenizer, suspect.vocabulary)
    probers = [suspect, *(copy.prober for copy in copies)]
    swept = [sweep(suspect, tokenizer), *(copy.swept for copy in copies)]
    contexts = contexts_of(tokenizer, texts.searched.texts["text"], WORDS, ROOM)
    sides = [Side(prober, _sure(asked(prober, contexts), texts.searched)) for prober in probers]
    fields = _fields(probers, tokenizer, texts, contexts)

    def judged(one: int, others: Sequence[int], field: Field) -> list[tuple[Field, Tokens, Moved]]:
        moved = [
            sides[row].reach(
                swept[row][:, field.target, None], torch.tensor([field.starts[row]]), field.target
            )
            for row in (one, *others)
        ]
        excess = moved[0][:, 0] - torch.cat(moved[1:], 1).amax(1).clamp_min(0)
        best = [groups[row] for row in excess.topk(min(GROUPS, len(groups))).indices.tolist()]
        pair = Sides(sides[one], tuple(sides[row] for row in others))
        tried = search(pair, field.target, best, field.windows, field.searched)
        return [(field, tokens, move(pair, field.target, [tokens], field.judged)) for tokens in tried]

    found = [each for field in fields for each in judged(0, range(1, len(sides)), field)]
    most: dict[int, Proportion] = {}
    if any(taken(moved).value > HALF for _, _, moved in found):
        for field in fields:
            for _, tokens, moved in judged(1, [0], field):
                rates = [taken(moved), *([most[len(tokens)]] if len(tokens) in most else [])]
                most[len(tokens)] = max(rates, key=lambda rate: rate.value)
    return [_verdict(field.target, tokens, moved, most.get(len(tokens))) for field, tokens, moved in found]


def _fields(
    probers: Sequence[Prober],
    tokenizer: PreTrainedTokenizerBase,
    texts: ScanTexts,
    contexts: Sequence[Context],
) -> list[Field]:
    judged = contexts_of(tokenizer, texts.judged.texts["text"], WORDS, ROOM)
    odds, after = ([asked(prober, rows) for prober in probers] for rows in (contexts, judged))
    found = []
    for target in range(odds[0].shape[1]):
        others, against = _others(odds, texts.searched, target), _others(after, texts.judged, target)
        if others and against:
            words = [texts.searched.texts["text"][row] for row in others]
            starts = [float(rows[others, target].mean()) for rows in odds]
            chosen = [contexts[row] for row in others[:TEXTS]], [judged[row] for row in against[:JUDGED]]
            windows = _windows(probers, tokenizer, words, target) or chosen[0][:WINDOWS]
            found.append(Field(target, windows, *chosen, starts))
    return found


def asked(prober: Prober, contexts: Sequence[Context]) -> Tensor:
    """(contexts, classes): log odds, nothing put in."""
    return prober.odds([context.filled([]) for context in contexts])


def taken(moved: Moved) -> Proportion:
    """Of the texts of one candidate."""
    alone = (moved.odds > 0) & (moved.others_odds <= 0) & (moved.reach - moved.others_reach > HALF)
    return Proportion(int(alone.sum()), alone.numel())


def _verdict(target: int, tokens: Tokens, moved: Moved, exchanged: Proportion | None) -> Verdict:
    flips, copied = (float((odds > 0).float().mean()) for odds in (moved.odds, moved.others_odds))
    return Verdict(target, tokens, taken(moved), exchanged, flips, copied, float(moved.reach.median()))


def _sure(odds: Tensor, rows: Rows) -> Tensor:
    """(classes,): log odds of nearly the surest texts of each class."""
    labels = torch.tensor(rows.labels)
    return torch.stack(
        [torch.quantile(odds[labels == target, target], SURE) for target in range(odds.shape[1])]
    )


def _others(odds: Sequence[Tensor], rows: Rows, target: int) -> list[int]:
    """Texts of other classes that no model puts into this one."""
    outside = torch.tensor(rows.labels) != target
    for one in odds:
        outside &= one[:, target] <= 0
    return torch.nonzero(outside).flatten().tolist()


def _windows(
    probers: Sequence[Prober], tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], target: int
) -> list[Context]:
    """The pairs of words that all models together hold most against a class; none of texts of one word."""
    windows = windows_of(tokenizer, texts, PAIRS)
    if not windows:
        return []
    odds = torch.stack([asked(prober, windows)[:, target] for prober in probers]).sum(0)
    return [windows[row] for row in odds.argsort()[:WINDOWS].tolist()]
