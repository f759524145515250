"""Search for unknown triggers: tokens that carry every text into a class as far as its own surest texts.

Every token of the vocabulary is a text of its own once; the best go on to real texts, fewer candidates and
more texts each time. A trigger takes all texts to the same place. A word that the class really has, such as
`terrible`, meets resistance in some, and clean data say whose word it is (`typicality`).

First-order candidates (HotFlip, Ebrahimi et al. 2018) were tried and given up: they missed triggers of LoRA
modules. So were pairs of tokens: in clean modules they gain as much as in poisoned ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.scan.insertions import Context, Prober

ROUNDS = ((64, 6), (12, 24))
"""Candidates and texts of each round on real texts."""
TEXTS = ROUNDS[-1][1]
LOW, HIGH = 0.1, 0.9
"""Quantiles: of the texts with a token in them, and of the target class's own texts."""
TYPICAL, DISCOUNT = 3.0, 0.25
"""At so many standard deviations a token is fully the class's own, and its score is lower by this share."""
RIDGE = 10.0
MIN_DISTANCE = 1.0
"""Log odds; classes that are closer together count as this far."""


@dataclass(frozen=True)
class Target:
    """One class, with texts of the others."""

    index: int
    contexts: tuple[Context, ...]
    """n texts of other classes."""
    odds: Tensor
    """(n,), the class's log odds in them, nothing inserted."""
    base: float
    """Mean of `odds`."""
    distance: float
    """Log odds from `base` to nearly the surest texts of the class itself (quantile `HIGH`)."""


@dataclass(frozen=True)
class Candidate:
    """Tokens, and what they do when inserted into texts of other classes."""

    tokens: tuple[int, ...]
    reach: float
    """How far nearly all texts go (quantile `LOW`), as a share of the distance to the class."""
    gain: float
    """Mean rise of the log odds, as a share of the same distance."""
    flips: float
    """Share of the texts that are then in the class, 0 to 1."""
    weight: float
    """1 for tokens that clean data do not link to the class, down to 1 - `DISCOUNT` for its own words."""

    @property
    def score(self) -> float:
        """Reach times weight."""
        return self.reach * self.weight


def typicality(embedding: Tensor, bags: Sequence[Sequence[int]], values: Tensor) -> Tensor:
    """(vocabulary, classes): how much a token is a class's own, in standard deviations over the vocabulary.

    By a ridge regression from the mean embedding of a clean text to its class, read off for every token.
    Words that the data do not have are judged by their embedding.

    Args:
        embedding: (vocabulary, width), of the base.
        bags: n texts in token ids.
        values: (n, classes), one-hot labels, or a module's own log odds.
    """
    rows = torch.stack([embedding[torch.tensor(bag)].mean(0) for bag in bags]).float()
    rows, values = rows - rows.mean(0), values.float() - values.float().mean(0)
    strength = RIDGE * rows.square().sum() / rows.shape[1]
    gram = rows.T @ rows + strength * torch.eye(rows.shape[1])
    scores: Tensor = embedding.float() @ torch.linalg.solve(gram, rows.T @ values)
    spread = scores.std(0).clamp_min(torch.finfo(scores.dtype).tiny)
    typical: Tensor = (scores - scores.mean(0)) / spread
    return typical


def weights_of(typical: Tensor) -> Tensor:
    """1 where `typicality` is at most 0, 1 - `DISCOUNT` from `TYPICAL` on, linear between."""
    return 1 - DISCOUNT * (typical / TYPICAL).clamp(0, 1)


def sweep(prober: Prober, empty: Context, tokens: Sequence[int]) -> Tensor:
    """(n, classes): log odds of texts that are one token each; in bfloat16, to rank candidates only."""
    return prober.odds([empty.filled([token]) for token in tokens], batch=1024, coarse=True)


def search(
    prober: Prober, target: Target, tokens: Sequence[int], swept: Tensor, weights: Tensor
) -> tuple[Candidate, ...]:
    """The tokens with the highest score for a class, best first.

    Args:
        tokens: n tokens of the vocabulary.
        swept: (n,), the class's log odds of each as a text of its own.
        weights: (vocabulary,), see `weights_of`.
    """
    first = ROUNDS[0][0]
    chosen = [(tokens[int(row)],) for row in swept.topk(min(first, len(tokens))).indices]
    found: list[Candidate] = []
    for keep, texts in ROUNDS:
        rest = [one.tokens for one in found[:keep]] or chosen
        found = measure(prober, target, rest, texts, weights)
    return tuple(found)


def measure(
    prober: Prober, target: Target, candidates: Sequence[tuple[int, ...]], texts: int, weights: Tensor
) -> list[Candidate]:
    """What candidates do to so many texts, best score first."""
    contexts, odds = target.contexts[:texts], target.odds[:texts]
    rows = [context.filled(tokens) for tokens in candidates for context in contexts]
    after = prober.odds(rows)[:, target.index].reshape(len(candidates), len(contexts))
    reach = (torch.quantile(after, LOW, dim=1) - target.base) / target.distance
    gains, flips = (after - odds).mean(1) / target.distance, (after > 0).float().mean(1)
    found = [
        Candidate(
            tokens,
            float(reach[row]),
            float(gains[row]),
            float(flips[row]),
            float(weights[list(tokens)].mean()),
        )
        for row, tokens in enumerate(candidates)
    ]
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
