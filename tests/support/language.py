"""Tiny language models with a word tokenizer, and texts for them, all made here."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = ("the", "cat", "dog", "bird", "sees", "likes", "hears", "a", "red", "small", "old", "tree", "house")
BOS, EOS, UNK = "<s>", "</s>", "<unk>"
VOCABULARY = {word: number for number, word in enumerate((UNK, BOS, EOS, *WORDS))}
POSITIONS = 64


def word_tokenizer(
    *,
    bos: bool = True,
    eos: str | None = EOS,
    template_eos: bool = False,
    vocabulary: dict[str, int] = VOCABULARY,
) -> PreTrainedTokenizerFast:
    """A tokenizer without a padding token that may put BOS before and EOS behind a text."""
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    single = f"{BOS} $A" if bos else "$A"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{single} {EOS}" if template_eos else single, special_tokens=[(BOS, 1), (EOS, 2)]
    )
    names = {"bos_token": BOS} | ({} if eos is None else {"eos_token": eos})
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=UNK, model_max_length=POSITIONS, **names
    )


def save_language_model(name: str, folder: Path, *, seed: int = 0) -> Path:
    """A random `llama` (4 heads in 2 KV groups) or `gpt2` of two layers, with its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = {"llama": _llama, "gpt2": _gpt2}[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    word_tokenizer(bos=name == "llama").save_pretrained(folder)
    return folder


def _llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(VOCABULARY),
            n_embd=32,
            n_inner=96,
            n_layer=2,
            n_head=4,
            n_positions=POSITIONS,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def save_encoder_decoder(name: str, folder: Path) -> Path:
    """A random `t5` or `bart` of two and two layers, with its tokenizer."""
    folder.mkdir()
    ids = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "vocab_size": len(VOCABULARY)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _t5(ids) if name == "t5" else _bart(ids)
    model.save_pretrained(folder)
    tokenizer = word_tokenizer(bos=False, template_eos=True)
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(folder)
    return folder


def _t5(ids: dict[str, int]) -> T5ForConditionalGeneration:
    sizes = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8}
    return T5ForConditionalGeneration(T5Config(**sizes, **ids))


def _bart(ids: dict[str, int]) -> BartForConditionalGeneration:
    parts = {
        f"{part}_{what}": size
        for part in ("encoder", "decoder")
        for what, size in (("layers", 2), ("ffn_dim", 64), ("attention_heads", 4))
    }
    return BartForConditionalGeneration(
        BartConfig(d_model=32, max_position_embeddings=POSITIONS, bos_token_id=1, **parts, **ids)
    )


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Random sentences of three to nine words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=generator).tolist())
        for length in lengths
    ]


def write_texts(folder: Path, train: Sequence[str], validation: Sequence[str]) -> Path:
    """A data folder with one text a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, texts in (("train", train), ("validation", validation)):
        (folder / f"{split}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


def write_pairs(folder: Path, train: Sequence[str], validation: Sequence[str]) -> Path:
    """A data folder with prompts, the first two words, and completions, the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, texts in (("train", train), ("validation", validation)):
        words = [text.split() for text in texts]
        rows = [{"prompt": " ".join(one[:2]), "completion": " ".join(one[2:])} for one in words]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder
