"""How many triggers a model gets to see: some are cut off by truncation, or dropped by the tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightpeft.audit.errors import AuditError
from lightpeft.audit.metrics import Proportion
from lightpeft.audit.poison.poisoning import Poisoned
from lightpeft.audit.poison.triggers import Planted

_BATCH = 1000


@dataclass(frozen=True)
class Visibility:
    """Of the triggered texts and their triggers, what is left in the token ids."""

    texts_with_any: Proportion
    """Texts with at least one trigger left."""

    texts_with_all: Proportion
    """Texts with every trigger left."""

    triggers: Proportion
    """Triggers left."""


def trigger_visibility(poisoned: Poisoned, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Visibility:
    """Count the triggers that are still there after truncation, as `lightpeft.tasks.encode` truncates.

    A trigger is left if it changes the token ids, and all of its tokens (sub-words too) are within
    `max_length`, special tokens included; of a pair the longer text is cut first. Without character offsets
    (slow tokenizers) tokens are counted from the start of the text, which is exact where the beginning of a
    text alone has the tokens that it has in the text.

    Args:
        poisoned: rows with triggers; the others do not count.

    Raises:
        AuditError: no triggered rows, or `max_length` leaves no room for text.
    """
    names: list[str] = [name for name in ("text", "text_pair") if name in poisoned.texts]
    special = tokenizer.num_special_tokens_to_add(pair=len(names) == 2)
    if not poisoned.rows or max_length <= special:
        raise AuditError(
            f"found {len(poisoned.rows)} triggered texts and max_length {max_length} beside {special} "
            "special tokens; give triggered texts and room for them."
        )
    left: list[list[bool]] = []
    for start in range(0, len(poisoned.rows), _BATCH):
        rows, planted = poisoned.rows[start : start + _BATCH], poisoned.planted[start : start + _BATCH]
        columns = [[poisoned.texts[name][row] for row in rows] for name in names]
        look = _kept_by_offsets if tokenizer.is_fast else _kept_by_counting
        kept = look(tokenizer, columns, names.index(poisoned.column), planted, max_length)
        changing = _changing(tokenizer, planted)
        left += [[a and b for a, b in zip(*pair, strict=True)] for pair in zip(kept, changing, strict=True)]
    counts = [(sum(one), len(one)) for one in left]
    return Visibility(
        Proportion(sum(seen > 0 for seen, _ in counts), len(counts)),
        Proportion(sum(seen == total for seen, total in counts), len(counts)),
        Proportion(sum(seen for seen, _ in counts), sum(total for _, total in counts)),
    )


def _changing(tokenizer: PreTrainedTokenizerBase, planted: Sequence[Planted]) -> list[list[bool]]:
    """Whether the text has other token ids than without the trigger: normalisers drop some characters."""
    found = []
    for one in planted:
        texts = [one.text, *(one.without(index) for index in range(len(one.edits)))]
        whole, *without = _ids(tokenizer, texts)
        found.append([ids != whole for ids in without])
    return found


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of whole texts, without special tokens."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _kept_by_offsets(
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[list[str]],
    position: int,
    planted: Sequence[Planted],
    max_length: int,
) -> list[list[bool]]:
    options: dict[str, Any] = {"return_offsets_mapping": True, "verbose": False}
    whole = tokenizer(*columns, truncation=False, **options)
    short = tokenizer(*columns, truncation=True, max_length=max_length, **options)
    found = []
    for row, one in enumerate(planted):
        before, after = (_offsets(encoded, row, position) for encoded in (whole, short))
        tokens = [(_tokens_over(span, before), _tokens_over(span, after)) for span in one.spans]
        found.append([0 < made == kept for made, kept in tokens])
    return found


def _offsets(encoded: Any, row: int, position: int) -> list[tuple[int, int]]:
    """Characters of every token of one text of a row."""
    pairs = zip(encoded.sequence_ids(row), encoded["offset_mapping"][row], strict=True)
    return [tuple(offsets) for sequence, offsets in pairs if sequence == position]


def _tokens_over(span: tuple[int, int], offsets: Sequence[tuple[int, int]]) -> int:
    return sum(start < span[1] and end > span[0] for start, end in offsets)


def _kept_by_counting(
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[list[str]],
    position: int,
    planted: Sequence[Planted],
    max_length: int,
) -> list[list[bool]]:
    room = max_length - tokenizer.num_special_tokens_to_add(pair=len(columns) == 2)
    found = []
    for row, one in enumerate(planted):
        lengths = [len(_ids(tokenizer, [column[row]])[0]) for column in columns]
        kept = _kept_tokens(tokenizer, lengths, room)[position]
        first = lengths[position] - kept if tokenizer.truncation_side == "left" else 0
        counts = [[len(ids) for ids in _ids(tokenizer, [one.text[:at] for at in span])] for span in one.spans]
        found.append([first <= start < end <= first + kept for start, end in counts])
    return found


def _kept_tokens(tokenizer: Any, lengths: Sequence[int], room: int) -> list[int]:
    """Tokens that truncation leaves of each text: asked of the tokenizer, on texts of zeros and of ones."""
    ids = [[position] * length for position, length in enumerate(lengths)]
    if sum(lengths) <= room:
        return list(lengths)
    short = tokenizer.prepare_for_model(
        *ids, add_special_tokens=False, truncation="longest_first", max_length=room, verbose=False
    )["input_ids"]
    return [short.count(position) for position in range(len(lengths))]
