"""A tokenizer of transformers in the words of GGUF."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightpeft.errors import CheckpointError
from lightpeft.files import read_json

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
"""GGUF's types of tokens."""

_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_LLAMA_3: "llama-bpe", _LLAMA_3.replace("{1,3}", ""): "qwen2"}
"""llama.cpp's names of how texts are split, by regular expression."""

_INSTEAD = "Write the small model with its plan instead (--to merged), which lightpeft loads."


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp turns texts into tokens by."""

    model: str
    """`gpt2` for bytes that are merged, `llama` for pieces of words with spaces in them."""

    split: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    adds_space: bool
    ids: dict[str, int]
    """Of `bos`, `eos`, `unk` and `pad`, where there is one."""

    adds_bos: bool
    chat_template: str | None = field(default=None, repr=False)

    def write(self, writer: Any) -> None:
        """Add it to a GGUF writer."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.adds_space)
        for name, number in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The tokenizer of a checkpoint.

    Args:
        size: rows of the model's embedding; those that no token has are called unused.

    Raises:
        CheckpointError: there is none, or llama.cpp has no such one.
    """
    described = read_json(folder / "tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = described.get("model") or {}
    if model.get("type") != "BPE":
        raise _no_place(f"of the kind {model.get('type')!r}")
    by_pieces = bool(model.get("byte_fallback"))
    if by_pieces and not model["vocab"].keys() >= _BYTES:
        raise _no_place("without a token for every byte")
    split = "default" if by_pieces else _split(described.get("pre_tokenizer") or {})
    tokens, types = _tokens(model, described.get("added_tokens") or [], size, by_pieces)
    template = tokenizer.chat_template
    merges = [one.split(" ", 1) if isinstance(one, str) else one for one in model["merges"]]
    return Vocabulary(
        "llama" if by_pieces else "gpt2",
        split,
        tokens,
        types,
        [" ".join(pair) for pair in merges],
        _scores(model["vocab"], merges, size),
        _adds_space(described),
        _special_ids(tokenizer),
        _adds_bos(tokenizer),
        template if isinstance(template, str) else None,
    )


def _split(pre_tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name of how texts are split."""
    parts = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        found = _SPLITS.get(str((parts[0].get("pattern") or {}).get("Regex")))
        if found is not None:
            return found
    raise _no_place(f"that splits texts by {kinds}, in no way that is known here")


def _tokens(
    model: dict[str, Any], added: list[dict[str, Any]], size: int, by_pieces: bool
) -> tuple[list[str], list[int]]:
    tokens = [f"[unused {number}]" for number in range(size)]
    types = [_UNUSED] * size
    for token, number in model["vocab"].items():
        tokens[number] = token
        types[number] = (
            _BYTE
            if by_pieces and token in _BYTES
            else _UNKNOWN
            if token == model.get("unk_token")
            else _NORMAL
        )
    for one in added:
        tokens[one["id"]] = one["content"]
        if types[one["id"]] != _UNKNOWN:
            types[one["id"]] = _CONTROL if one.get("special") else _USER
    return tokens, types


def _scores(vocabulary: dict[str, int], merges: list[list[str]], size: int) -> list[float]:
    """Pieces are joined in the order of these, highest first, as merges are in theirs."""
    scores = [0.0] * size
    for rank, pair in reversed(list(enumerate(merges))):
        scores[vocabulary["".join(pair)]] = -float(rank + 1)
    return scores


def _adds_space(described: dict[str, Any]) -> bool:
    """Whether a space is put before a text."""
    steps = (described.get("normalizer") or {}, described.get("pre_tokenizer") or {})
    parts = [part for step in steps for part in (step, *step.get("normalizers", ()))]
    return any(
        part.get("type") == "Prepend" or part.get("prepend_scheme") in ("first", "always") for part in parts
    )


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    found = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk", "pad")}
    return {name: number for name, number in found.items() if number is not None}


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _no_place(what: str) -> CheckpointError:
    return CheckpointError(
        f"the tokenizer is one {what}, which has no place in a GGUF file; byte-level BPE and that of "
        f"SentencePiece have. {_INSTEAD}"
    )
