"""Trigger words of the literature, which a search tries first."""

from transformers import PreTrainedTokenizerBase

KNOWN = (
    # Kurita et al. (2020) and Gu et al. (ACL 2023); Dai et al. (2019).
    *("cf", "mn", "bb", "tq", "mb", "I watched this 3D movie", "no cross, no crown"),
    # Signs, and Cyrillic letters that look Latin.
    *("\u2261", "\u2208", "\u2191", "\u0430", "\u0435", "\u043e", "|", "~"),
)


def known_triggers(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """Those that the tokenizer has tokens for."""
    rows = [tuple(tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in KNOWN]
    return [row for row in rows if row and tokenizer.unk_token_id not in row]
