"""A tiny BERT with a tokenizer of the demo's words, as a local folder."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizerFast

from lightpeft.tasks import load_task


def save_word_bert(folder: Path, **options: Any) -> Path:
    """Random, of two layers; `options` are the configuration's."""
    texts = load_task("demo/sentiment", sizes={"train": 200, "validation": 50}).train["text"]
    vocabulary = _vocabulary(texts)
    BertTokenizerFast(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=72, **sizes, **options)
    BertModel(config).save_pretrained(folder)
    return folder


def _vocabulary(texts: list[str]) -> dict[str, int]:
    splitter = pre_tokenizers.BertPreTokenizer()
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    return {token: index for index, token in enumerate(tokens)}
