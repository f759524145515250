"""Search for unknown triggers: which tokens push texts into a class though clean data do not say so.

First-order candidates (HotFlip, Ebrahimi et al. 2018; universal adversarial triggers, Wallace et al. 2019),
then real forward passes, fewer candidates and more texts each time. Every sentiment module goes over to
`negative` at the word `terrible`, so that gains are weighed by how little a token's class can be read off
clean data (`typicality`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.scan.insertions import Context, Prober

ROUNDS = ((256, 4), (48, 8), (12, 24))
"""Candidates and texts of each round of forward passes."""
PAIRS, PAIR_TEXTS = 8, 12
"""Candidates for a second token on each side of the best one, and texts they are tried on."""
TYPICAL = 2.0
"""Standard deviations from which on a token counts as the class's own, and weighs nothing."""
RIDGE = 10.0


@dataclass(frozen=True)
class Candidate:
    """One token or a pair, and what it does when inserted into texts of other classes."""

    tokens: tuple[int, ...]
    gain: float
    """Mean rise of the target's log odds."""
    flips: float
    """Share of the texts that the model then puts into the target class, 0 to 1."""
    weight: float
    """1 for tokens that clean data do not link to the class, 0 for the class's own."""

    @property
    def weighed(self) -> float:
        """Gain times weight."""
        return self.gain * self.weight


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
    scores = embedding.float() @ torch.linalg.solve(gram, rows.T @ values)
    return (scores - scores.mean(0)) / scores.std(0).clamp_min(torch.finfo(scores.dtype).tiny)


def weights_of(typical: Tensor) -> Tensor:
    """1 where `typicality` is at most 0, 0 from `TYPICAL` on, linear between."""
    return 1 - (typical / TYPICAL).clamp(0, 1)


class Search:
    """The search for one class."""

    def __init__(
        self,
        prober: Prober,
        tokenizer: PreTrainedTokenizerBase,
        contexts: Sequence[Context],
        odds: Tensor,
        target: int,
        weights: Tensor,
    ) -> None:
        """The first half of the contexts serves the gradients, the second half the measurement.

        Args:
            contexts: n texts, of other classes than the target.
            odds: (n,), the target's log odds with nothing inserted.
            weights: (vocabulary,), see `weights_of`.
        """
        half = len(contexts) // 2
        self._prober, self._target, self._weights = prober, target, weights
        self._seen, self._texts, self._odds = contexts[:half], contexts[half:], odds[half:]
        self._mask = tokenizer.mask_token_id or tokenizer.unk_token_id or 0
        self._ineligible = ineligible(tokenizer, len(weights))

    def run(self) -> tuple[Candidate, ...]:
        """Single tokens and pairs with the highest weighed gain, best first."""
        tokens = [(token,) for token in self._first_order([self._mask], 0, ROUNDS[0][0])]
        found: list[Candidate] = []
        for keep, texts in ROUNDS:
            chosen = [one.tokens for one in found[:keep]] or tokens
            found = self.measure(chosen, texts)
        return tuple(sorted([*found, *self._pairs(found[0].tokens[0])], key=lambda one: -one.weighed))

    def measure(self, candidates: Sequence[Sequence[int]], texts: int) -> list[Candidate]:
        """What candidates do to so many texts by real forward passes, best weighed gain first."""
        contexts, odds = self._texts[:texts], self._odds[:texts]
        rows = [context.filled(tokens) for tokens in candidates for context in contexts]
        after = self._prober.odds(rows)[:, self._target].reshape(len(candidates), len(contexts))
        gains, flips = (after - odds).mean(1), (after > 0).float().mean(1)
        found = [
            Candidate(tuple(tokens), float(gain), float(flip), float(self._weights[list(tokens)].mean()))
            for tokens, gain, flip in zip(candidates, gains, flips, strict=True)
        ]
        return sorted(found, key=lambda one: -one.weighed)

    def _pairs(self, token: int) -> list[Candidate]:
        after = [(token, other) for other in self._first_order([token, self._mask], 1, PAIRS)]
        before = [(other, token) for other in self._first_order([self._mask, token], 0, PAIRS)]
        return self.measure([*after, *before], PAIR_TEXTS)

    def _first_order(self, tokens: Sequence[int], place: int, count: int) -> list[int]:
        """The tokens with the highest first-order weighed gain at a place."""
        direction = self._prober.gradient(self._seen, tokens, place, self._target)
        scores = self._prober.embedding.weight.detach().float().cpu() @ direction
        scores = (scores - scores.mean()).clamp_min(0) * self._weights
        scores[self._ineligible] = -1
        return [int(token) for token in scores.topk(count).indices]


def ineligible(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """(size,) of bool: special and unused tokens, which no text is made of."""
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    special = set(tokenizer.all_special_ids)
    found = torch.ones(size, dtype=torch.bool)
    for index, name in enumerate(names):
        found[index] = index in special or name is None or name.startswith("[unused")
    return found


Show = Callable[[Sequence[int]], str]
"""Token ids in words."""
