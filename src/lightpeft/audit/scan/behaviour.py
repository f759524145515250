"""What a module does with texts that have something inserted: scores and the tokens they come from."""

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
from lightpeft.audit.scan.known import excess, known_and_controls
from lightpeft.audit.scan.search import Candidate, Search, ineligible, typicality, weights_of
from lightpeft.audit.scan.texts import ScanTexts

WORDS, MAX_LENGTH = 12, 48
PROBED = 160
"""Texts that are classified, to choose from."""
CONTEXTS = 56
"""Texts of other classes that a class is searched with: half for gradients, half for forward passes."""
BAG = 48
"""Tokens of a text that the typicality is learned from."""


@dataclass(frozen=True)
class Behaviour:
    """Scores of one module, the higher the more suspicious, and the evidence."""

    search: float
    known: float
    evidence: dict[str, Any]


def measure_behaviour(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: ScanTexts
) -> Behaviour:
    """Both behaviour parts for every class; the scores are the highest over the classes.

    Gains are divided by the distance between the model's own classes in log odds, so that a score of 1 is:
    a token of no class moves texts as far as the other class is away.

    Raises:
        AuditError: labels that the module has no class for, or a head of one class.
    """
    prober = Prober(model, tokenizer)
    contexts = contexts_of(tokenizer, texts.texts[:PROBED], WORDS, MAX_LENGTH)
    odds = prober.odds([context.filled([]) for context in contexts])
    if odds.shape[1] < 2 or (texts.labels and max(texts.labels) >= odds.shape[1]):
        raise AuditError(
            f"the module has {odds.shape[1]} classes, the texts have labels up to {max(texts.labels or [0])}; "
            "give data of the module's own task."
        )
    embedding = prober.embedding.weight.detach().cpu()
    weights = weights_of(typicality(embedding, *_clean_data(tokenizer, texts, odds)))
    barred = ineligible(tokenizer, len(embedding))
    rows = known_and_controls(tokenizer, barred)
    classes = []
    for target in range(odds.shape[1]):
        chosen = _others(odds, target)
        search = Search(
            prober, tokenizer, [contexts[row] for row in chosen], odds[chosen, target], target, weights[:, target]
        )
        classes.append(_one_class(search, tokenizer, rows, target, _distance(odds, target)))
    return Behaviour(
        max(one["search"] for one in classes), max(one["known"] for one in classes), {"classes": classes}
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


def _others(odds: Tensor, target: int) -> list[int]:
    """Texts that the model puts into other classes, in their order; too few are made up by the least sure."""
    others = [row for row in range(len(odds)) if int(odds[row].argmax()) != target]
    rest = sorted(set(range(len(odds))) - set(others), key=lambda row: float(odds[row, target]))
    return [*others, *rest][:CONTEXTS]


def _distance(odds: Tensor, target: int) -> float:
    """Log odds between texts of the target class and the others; at least 1."""
    inside = odds.argmax(1) == target
    if inside.all() or not inside.any():
        return 1.0
    return max(1.0, float(odds[inside, target].median() - odds[~inside, target].median()))


def _one_class(
    search: Search,
    tokenizer: PreTrainedTokenizerBase,
    rows: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    target: int,
    distance: float,
) -> dict[str, Any]:
    over, known, control = excess(search, *rows)
    found = search.run()
    return {
        "target": target,
        "distance": distance,
        "search": found[0].weighed / distance,
        "known": over / distance,
        "tokens": [_shown(one, tokenizer) for one in found[:5]],
        "known_trigger": _shown(known, tokenizer),
        "control": _shown(control, tokenizer),
    }


def _shown(candidate: Candidate, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "tokens": tokenizer.convert_ids_to_tokens(list(candidate.tokens)),
        "gain": candidate.gain,
        "flips": candidate.flips,
        "weight": candidate.weight,
    }
