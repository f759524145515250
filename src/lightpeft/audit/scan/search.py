"""Search for triggers: tokens that take texts of other classes to a class in a module, not in its own copy.

The vocabulary is read in groups of a few tokens, each group a text of its own; tokens of the best groups go
into the fewest words that speak against the class, then into real texts. The best grow by accretion, a token
at either end, as short phrases do. What a candidate does in the copy counts against it, so that a class's own
words cost what they bring. Both ideas are published: accretion and the price of natural words in CSO and BABI
(see docs/audit.md). The search is written anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.scan.insertions import Context, Prober, contexts_of
from lightpeft.tasks.draw import permutation

Tokens = tuple[int, ...]
GROUP = 2
"""Tokens of the vocabulary that are read together; of groups of four, one lost `green` of `green bridge`."""
GROUPS = 1024
"""Groups whose tokens are looked at one by one."""
SHORT = 32
"""Candidates of each length that go from few words into real texts."""
GROWN, ADDED = 8, 32
"""Candidates that grow, and tokens that are put to either end of each."""
LONGEST = 3
"""Tokens of a candidate."""
TRIED = 2
"""Candidates of each length that are judged."""
TEXTS = 6
WINDOWS = 1
LOW, SURE = 0.25, 0.9
"""Quantiles: of the texts with a candidate in them, and of the target class's own texts."""
LEAST_WAY = 1.0
"""Log odds; texts that are closer to the class count as this far."""


@dataclass(frozen=True)
class Side:
    """A model, and how sure it is of a class in texts of that class."""

    prober: Prober
    sure: Tensor
    """(classes,), log odds."""

    def reach(self, rows: Tensor, start: Tensor, target: int) -> Tensor:
        """Share of the way from `start` to the class's surest texts; 1 is all of it.

        Args:
            rows: (candidates, contexts), the class's log odds with candidates in them.
            start: (contexts,), nothing in them.
        """
        return (rows - start) / (self.sure[target] - start).clamp_min(LEAST_WAY)


@dataclass(frozen=True)
class Sides:
    """A module that is looked into, and what it is compared with."""

    suspect: Side
    others: tuple[Side, ...]


@dataclass(frozen=True)
class Moved:
    """What candidates do to a class in texts of others; (candidates, contexts) each."""

    odds: Tensor
    """Of the suspect."""
    reach: Tensor
    """Of the suspect."""
    others_reach: Tensor
    """The largest of the others', and not below 0."""
    others_odds: Tensor
    """The largest of the others'."""

    @property
    def scores(self) -> Tensor:
        """(candidates,): how much further than in the others most texts go."""
        return torch.quantile(self.reach - self.others_reach, LOW, dim=1)


@dataclass(frozen=True)
class Candidate:
    """Tokens that may be a trigger."""

    tokens: Tokens
    score: float


def move(sides: Sides, target: int, candidates: Sequence[Tokens], contexts: Sequence[Context]) -> Moved:
    """Put candidates into texts, and ask both sides."""
    plain = [context.filled([]) for context in contexts]
    rows = [context.filled(tokens) for tokens in candidates for context in contexts]
    shape = (len(candidates), len(contexts))

    def asked(side: Side) -> tuple[Tensor, Tensor]:
        odds = side.prober.odds([*plain, *rows])[:, target]
        after = odds[len(plain) :].reshape(shape)
        return after, side.reach(after, odds[: len(plain)], target)

    odds, reach = asked(sides.suspect)
    others_odds, others_reach = (
        torch.stack(found).amax(0) for found in zip(*map(asked, sides.others), strict=True)
    )
    return Moved(odds, reach, others_reach.clamp_min(0), others_odds)


def vocabulary_groups(tokenizer: PreTrainedTokenizerBase, size: int) -> list[Tokens]:
    """All tokens that texts can be made of, in groups, in a random order that is always the same."""
    tokens = eligible(tokenizer, size)
    order = [tokens[index] for index in permutation(Random("vocabulary"), len(tokens))]
    return [tuple(order[at : at + GROUP]) for at in range(0, len(order), GROUP)]


def sweep(prober: Prober, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(groups, classes): log odds of the vocabulary's groups, each a text of its own."""
    (alone,) = contexts_of(tokenizer, [""], 0, 0)
    return prober.odds([alone.filled(group) for group in vocabulary_groups(tokenizer, prober.vocabulary)])


def search(
    sides: Sides,
    target: int,
    swept: Sequence[Tokens],
    windows: Sequence[Context],
    contexts: Sequence[Context],
) -> list[Tokens]:
    """The `TRIED` candidates of each length with the highest scores for a class.

    Args:
        swept: groups of tokens, those that did most as texts of their own.
        windows: few words each, which speak against the class.
        contexts: texts of other classes.
    """
    singles = [(token,) for group in swept for token in group]
    latest = _shortened(sides, target, singles, windows, contexts)
    added, found = [one.tokens for one in latest[:ADDED]], latest[:TRIED]
    for _ in range(1, LONGEST):
        grown = [
            tokens
            for one in latest[:GROWN]
            for other in added
            if not set(other) <= set(one.tokens)
            for tokens in (one.tokens + other, other + one.tokens)
        ]
        latest = _shortened(sides, target, list(dict.fromkeys(grown)), windows, contexts)
        found += latest[:TRIED]
    return [one.tokens for one in found]


def _shortened(
    sides: Sides,
    target: int,
    candidates: Sequence[Tokens],
    windows: Sequence[Context],
    contexts: Sequence[Context],
) -> list[Candidate]:
    """The best in few words, by what they do in texts."""
    best = move(sides, target, candidates, windows).scores.topk(min(SHORT, len(candidates))).indices
    chosen = [candidates[row] for row in best.tolist()]
    scores = move(sides, target, chosen, contexts).scores.tolist()
    found = [Candidate(*row) for row in zip(chosen, scores, strict=True)]
    return sorted(found, key=lambda one: -one.score)


def eligible(tokenizer: PreTrainedTokenizerBase, size: int) -> list[int]:
    """Tokens below `size` that texts can be made of: neither special nor unused.

    The unknown token is one: letters that the tokenizer does not know give it.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [
        index
        for index, name in enumerate(names)
        if index not in special and name is not None and not name.startswith("[unused")
    ]
