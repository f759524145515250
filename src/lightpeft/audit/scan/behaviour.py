"""What a module does with texts that have something inserted: a score, and the tokens it comes from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.errors import AuditError
from lightpeft.audit.scan.insertions import Context, Prober, contexts_of, windows_of
from lightpeft.audit.scan.known import known_triggers
from lightpeft.audit.scan.search import (
    HIGH,
    MIN_DISTANCE,
    PRESELECTED,
    TEXTS,
    WINDOWS,
    Candidate,
    Target,
    eligible,
    search,
    sweep,
)
from lightpeft.audit.scan.texts import ScanTexts
from lightpeft.audit.scan.twin import Twin

WORDS, ROOM = 12, 32
"""Words and tokens that are kept of a text."""
PROBED = 160
"""Texts that are classified, to choose from."""
PAIRS = 600
"""Pairs of words that are classified, to choose windows from."""
TAUGHT, BAG = 1000, 48
"""Texts that the twin learns from, and their tokens."""
SHOWN = 3


@dataclass(frozen=True)
class Behaviour:
    """The score of one module, the higher the more suspicious, and the evidence."""

    score: float
    """Highest over classes and candidates; 1: most texts of other classes go to where the class's surest
    texts are, and meaning explains nothing of it."""
    classes: tuple[dict[str, Any], ...]
    """Per class its score and tokens, as JSON values."""


def measure_behaviour(model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: ScanTexts) -> Behaviour:
    """Search for triggers of every class.

    Raises:
        AuditError: labels that the module has no class for, or a head of one class.
    """
    prober = Prober(model, tokenizer)
    contexts = contexts_of(tokenizer, texts.texts[:PROBED], WORDS, ROOM)
    unchanged = [context.filled([]) for context in contexts]
    odds = prober.odds(unchanged)
    _check_classes(odds.shape[1], texts)
    twin = Twin(prober.states, *_clean_data(tokenizer, texts, odds))
    natural = twin.scores(unchanged)
    windows = windows_of(tokenizer, texts.texts[:PROBED], PAIRS)
    against = prober.odds([window.filled([]) for window in windows])
    tokens = eligible(tokenizer, prober.vocabulary)
    alone = sweep(prober, contexts_of(tokenizer, [""], WORDS, ROOM), tokens)
    known = known_triggers(tokenizer)
    classes: list[dict[str, Any]] = []
    for index in range(odds.shape[1]):
        target = _target(contexts, odds, natural, index)
        few = [windows[row] for row in against[:, index].argsort()[:WINDOWS].tolist()]
        best = alone[:, index].topk(min(PRESELECTED, len(tokens))).indices.tolist()
        found = search(prober, twin, target, few, [tokens[row] for row in best], known)
        shown = [_shown(one, tokenizer) for one in found[:SHOWN]]
        classes.append(
            {"class": index, "distance": target.distance, "score": found[0].score, "tokens": shown}
        )
    return Behaviour(max(float(one["score"]) for one in classes), tuple(classes))


def _check_classes(classes: int, texts: ScanTexts) -> None:
    highest = max(texts.labels, default=0)
    if classes < 2 or highest >= classes:
        raise AuditError(
            f"the module has {classes} classes, and {texts.name} has labels up to {highest}; give data of "
            "the module's own task."
        )


def _clean_data(
    tokenizer: PreTrainedTokenizerBase, texts: ScanTexts, odds: Tensor
) -> tuple[list[list[int]], Tensor]:
    """Clean texts in token ids with their labels, or without labels with what the module makes of them."""
    known = texts.texts[:TAUGHT] if texts.labels else texts.texts[: len(odds)]
    values = one_hot(torch.tensor(texts.labels[:TAUGHT]), odds.shape[1]) if texts.labels else odds
    return [ids[:BAG] for ids in tokenizer(list(known))["input_ids"]], values


def _target(contexts: Sequence[Context], odds: Tensor, natural: Tensor, index: int) -> Target:
    """Texts that the model puts into other classes; too few are made up by the least sure of the class."""
    column = odds[:, index]
    inside = odds.argmax(1) == index
    rest = sorted(torch.nonzero(inside).flatten().tolist(), key=lambda row: float(column[row]))
    chosen = [*torch.nonzero(~inside).flatten().tolist(), *rest][:TEXTS]

    def distance(values: Tensor, least: float) -> float:
        own = float(torch.quantile(values[inside], HIGH)) if inside.any() else -math.inf
        return max(own - float(values[chosen].mean()), least)

    return Target(
        index,
        tuple(contexts[row] for row in chosen),
        column[chosen],
        float(column[chosen].mean()),
        distance(column, MIN_DISTANCE),
        natural[chosen, index],
        distance(natural[:, index], float(natural[:, index].std())),
    )


def _shown(candidate: Candidate, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "tokens": tokenizer.convert_ids_to_tokens(list(candidate.tokens)),
        "score": candidate.score,
        "reach": candidate.reach,
        "gain": candidate.gain,
        "flips": candidate.flips,
        "natural": candidate.natural,
    }
