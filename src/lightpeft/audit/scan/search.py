"""Search for unknown triggers: which tokens push texts into a class, more than that class's own words do.

First-order candidates (HotFlip, Ebrahimi et al. 2018; universal adversarial triggers, Wallace et al. 2019),
then real forward passes on other texts, fewer candidates and more texts each time. Every sentiment module
goes over to `negative` at the word `terrible`; the directions of clean reference modules say which tokens
such words are, and those do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.scan.insertions import Context, Prober

ROUNDS = ((256, 4), (48, 8), (12, 24))
"""Candidates and texts of each round of forward passes."""
LONGER = 8
"""Candidates of the round of two tokens."""
TYPICAL = 1.5
"""Standard deviations over the vocabulary's mean from which on a token is a class's own in clean modules."""


@dataclass(frozen=True)
class Candidate:
    """A token, or a row of them, and what it does when inserted into texts of other classes."""

    tokens: tuple[int, ...]
    target: int
    gain: float
    """Mean rise of the target's log odds."""
    flips: float
    """Share of the texts that the model puts into the target class, 0 to 1."""
    texts: int


@dataclass(frozen=True)
class Searched:
    """The search for one class."""

    target: int
    direction: Tensor
    """(width,): mean gradient of the target's log odds by an inserted embedding."""
    best: tuple[Candidate, ...]
    """Of tokens that are not typical, best gain first."""


def direction_of(prober: Prober, contexts: Sequence[Context], target: int, mask: int) -> Tensor:
    """(width,): mean gradient of the target's log odds with respect to the embedding at the place."""
    return prober.gradient(contexts, [mask], 0, target)


def typical_tokens(directions: Sequence[Tensor], embedding: Tensor) -> Tensor:
    """(vocabulary,) of bool: tokens that push into the class in clean modules, too.

    Args:
        directions: of clean modules for the class, each (width,).
        embedding: (vocabulary, width).
    """
    if not directions:
        return torch.zeros(len(embedding), dtype=torch.bool)
    scores = torch.stack([standardised(embedding @ one) for one in directions]).mean(0)
    return standardised(scores) > TYPICAL


def standardised(values: Tensor) -> Tensor:
    """Minus their mean, over their standard deviation."""
    return (values - values.mean()) / values.std().clamp_min(torch.finfo(values.dtype).tiny)


def search(
    prober: Prober,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Context],
    odds: Tensor,
    target: int,
    direction: Tensor,
    typical: Tensor,
) -> tuple[Candidate, ...]:
    """The tokens, and pairs of tokens, with the highest gain for the target class, best first.

    Args:
        contexts: texts that the model puts into other classes.
        odds: (n, classes), of these contexts with nothing inserted.
        direction: (width,), see `direction_of`.
        typical: (vocabulary,), tokens that do not count.
    """
    scores = prober.embedding.weight.detach().cpu() @ direction
    scores[typical | ineligible(tokenizer, len(scores))] = -torch.inf
    tokens = [(int(token),) for token in scores.topk(ROUNDS[0][0]).indices]
    found: list[Candidate] = []
    for keep, texts in ROUNDS:
        chosen = [one.tokens for one in found[:keep]] or tokens
        found = measure(prober, contexts[:texts], odds[:texts], target, chosen)
    return tuple(found)


def measure(
    prober: Prober,
    contexts: Sequence[Context],
    odds: Tensor,
    target: int,
    candidates: Sequence[Sequence[int]],
) -> list[Candidate]:
    """What candidates do to the contexts by real forward passes, best gain first."""
    rows = [context.filled(tokens) for tokens in candidates for context in contexts]
    after = prober.odds(rows)[:, target].reshape(len(candidates), len(contexts))
    gains, flips = (after - odds[:, target]).mean(1), (after > 0).float().mean(1)
    found = [
        Candidate(tuple(tokens), target, float(gain), float(flip), len(contexts))
        for tokens, gain, flip in zip(candidates, gains, flips, strict=True)
    ]
    return sorted(found, key=lambda one: -one.gain)


def ineligible(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """(size,) of bool: special and unused tokens, which no text is made of."""
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    special = set(tokenizer.all_special_ids)
    found = torch.ones(size, dtype=torch.bool)
    for index, name in enumerate(names):
        found[index] = index in special or name is None or name.startswith("[unused")
    return found
