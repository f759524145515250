"""Search for unknown triggers: tokens that take texts of other classes to a class for no reason of meaning.

Every token of the vocabulary is a text of its own once; the best go into the fewest words that the module
holds against the class, then into real texts, fewer candidates and more texts each time. A word that the
class really has, such as `terrible`, works there too: what it does to a clean twin (`Twin`) counts against
it.

First-order candidates (HotFlip, Ebrahimi et al. 2018) were tried and given up: they missed triggers of LoRA
modules. So were pairs of tokens: in clean modules they gain as much as in poisoned ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.scan.insertions import Context, Prober
from lightpeft.audit.scan.twin import Twin

PRESELECTED = 4096
"""Tokens that are left after the sweep over the vocabulary."""
WINDOWS = 2
ROUNDS = ((128, 6), (24, 24))
"""Candidates and texts of each round on real texts."""
TEXTS = ROUNDS[-1][1]
LOW, HIGH = 0.25, 0.9
"""Quantiles: of the texts with a token in them, and of the target class's own texts."""
NATURAL = 6.0
"""How much the twin's rise counts: it is the weaker classifier, and moves less; triggers do not move it."""
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
    natural: Tensor
    """(n,), the twin's scores of the class in the texts."""
    natural_distance: float
    """The same distance of the twin's."""


@dataclass(frozen=True)
class Candidate:
    """Tokens, and what they do when inserted into texts of other classes."""

    tokens: tuple[int, ...]
    reach: float
    """How far most texts go (quantile `LOW`), as a share of the distance to the class."""
    gain: float
    """Mean rise of the log odds, as a share of the same distance."""
    flips: float
    """Share of the texts that are then in the class, 0 to 1."""
    natural: float
    """Mean rise of the twin's score, as a share of the twin's distance: what the tokens mean."""

    @property
    def score(self) -> float:
        """Reach that meaning does not explain."""
        return self.reach - NATURAL * max(self.natural, 0.0)


def sweep(prober: Prober, contexts: Sequence[Context], tokens: Sequence[int]) -> Tensor:
    """(n, classes): mean log odds of contexts with each token."""
    swept = [prober.odds([one.filled([token]) for token in tokens]) for one in contexts]
    return torch.stack(swept).mean(0)


def search(
    prober: Prober,
    twin: Twin,
    target: Target,
    windows: Sequence[Context],
    tokens: Sequence[int],
    known: Sequence[tuple[int, ...]],
) -> list[Candidate]:
    """The candidates with the highest score for a class, best first.

    Args:
        windows: few words each, which the module holds against the class.
        tokens: of the vocabulary, those that did most as texts of their own.
        known: token rows that are tried whatever the sweep says of them.
    """
    swept = sweep(prober, windows, tokens)[:, target.index]
    best = swept.topk(min(ROUNDS[0][0], len(tokens))).indices.tolist()
    rest = list(dict.fromkeys([*((tokens[row],) for row in best), *known]))
    found: list[Candidate] = []
    for keep, texts in ROUNDS:
        chosen = [one.tokens for one in found[:keep]] or rest
        found = measure(prober, twin, target, chosen, texts)
    return found


def measure(
    prober: Prober, twin: Twin, target: Target, candidates: Sequence[tuple[int, ...]], texts: int
) -> list[Candidate]:
    """What candidates do to so many texts, best score first."""
    contexts = target.contexts[:texts]
    rows = [context.filled(tokens) for tokens in candidates for context in contexts]
    shape = (len(candidates), len(contexts))
    after, natural = (of(rows)[:, target.index].reshape(shape) for of in (prober.odds, twin.scores))
    reach = (torch.quantile(after, LOW, dim=1) - target.base) / target.distance
    gains = (after - target.odds[:texts]).mean(1) / target.distance
    meant = (natural - target.natural[:texts]).mean(1) / target.natural_distance
    flips = (after > 0).float().mean(1)
    columns = (column.tolist() for column in (reach, gains, flips, meant))
    found = [Candidate(*row) for row in zip(candidates, *columns, strict=True)]
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
