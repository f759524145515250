"""What a module does with texts that have something inserted: scores, and the tokens they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.errors import AuditError
from lightpeft.audit.scan.insertions import Context, Prober, contexts_of
from lightpeft.audit.scan.known import best_known, controls_for, known_triggers
from lightpeft.audit.scan.search import (
    HIGH,
    MIN_DISTANCE,
    TEXTS,
    Candidate,
    Target,
    eligible,
    search,
    sweep,
    typicality,
    weights_of,
)
from lightpeft.audit.scan.texts import ScanTexts

WORDS, ROOM = 12, 32
"""Words and tokens that are kept of a text."""
PROBED = 160
"""Texts that are classified, to choose from."""
BAG = 48
"""Tokens of a text that the typicality is learned from."""
SHOWN = 3


@dataclass(frozen=True)
class Behaviour:
    """Scores of one module, the higher the more suspicious, and the evidence."""

    search: float
    """Highest over classes and tokens of reach times weight; 1: nearly all texts of other classes go to where
    the class's surest texts are."""
    known: float
    """Highest over the classes: gain of the best known trigger over that of the best control."""
    classes: tuple[dict[str, Any], ...]
    """Per class its scores and tokens, as JSON values."""


def measure_behaviour(model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: ScanTexts) -> Behaviour:
    """Both behaviour parts, for every class.

    Raises:
        AuditError: labels that the module has no class for, or a head of one class.
    """
    prober = Prober(model, tokenizer)
    contexts = contexts_of(tokenizer, texts.texts[:PROBED], WORDS, ROOM)
    odds = prober.odds([context.filled([]) for context in contexts])
    _check_classes(odds.shape[1], texts)
    weights = weights_of(typicality(prober.embedding, *_clean_data(tokenizer, texts, odds)))
    tokens = eligible(tokenizer, len(prober.embedding))
    swept = sweep(prober, contexts_of(tokenizer, [""], WORDS, ROOM)[0], tokens)
    known = known_triggers(tokenizer)
    controls = controls_for(known, tokens)
    classes: list[dict[str, Any]] = []
    for index in range(odds.shape[1]):
        target, own = _target(contexts, odds, index), weights[:, index]
        found = search(prober, target, tokens, swept[:, index], own)
        over, trigger, control = best_known(prober, target, known, controls, own)
        shown = [_shown(one, tokenizer) for one in (*found[:SHOWN], trigger, control)]
        classes.append(
            {"class": index, "distance": target.distance, "search": found[0].score, "known": over}
            | {"tokens": shown[:-2], "known_trigger": shown[-2], "control": shown[-1]}
        )
    highest = [max(float(one[part]) for one in classes) for part in ("search", "known")]
    return Behaviour(highest[0], highest[1], tuple(classes))


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
    """Bags of tokens with their labels, or without labels with what the module makes of them."""
    known = texts.texts if texts.labels else texts.texts[: len(odds)]
    values = one_hot(torch.tensor(texts.labels), odds.shape[1]) if texts.labels else odds
    bags = [ids[:BAG] for ids in tokenizer(list(known), add_special_tokens=False)["input_ids"]]
    kept = [row for row, bag in enumerate(bags) if bag]
    return [bags[row] for row in kept], values[kept]


def _target(contexts: Sequence[Context], odds: Tensor, index: int) -> Target:
    """Texts that the model puts into other classes; too few are made up by the least sure of the class."""
    column = odds[:, index]
    inside = odds.argmax(1) == index
    rest = sorted(torch.nonzero(inside).flatten().tolist(), key=lambda row: float(column[row]))
    chosen = [*torch.nonzero(~inside).flatten().tolist(), *rest][:TEXTS]
    base = float(column[chosen].mean())
    distance = float(torch.quantile(column[inside], HIGH)) - base if inside.any() else 0.0
    return Target(
        index, tuple(contexts[row] for row in chosen), column[chosen], base, max(distance, MIN_DISTANCE)
    )


def _shown(candidate: Candidate | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    if candidate is None:
        return None
    return {
        "tokens": tokenizer.convert_ids_to_tokens(list(candidate.tokens)),
        "score": candidate.score,
        "reach": candidate.reach,
        "gain": candidate.gain,
        "flips": candidate.flips,
        "weight": candidate.weight,
    }
