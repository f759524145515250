"""A tiny BERT with a word tokenizer, as a local folder that the command line can load."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizerFast

from lightpeft.tasks import load_task


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-bert")
    texts = load_task("demo/sentiment", sizes={"train": 200, "validation": 50}).train["text"]
    vocabulary = _vocabulary(texts)
    BertTokenizerFast(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=72,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def _vocabulary(texts: list[str]) -> dict[str, int]:
    splitter = pre_tokenizers.BertPreTokenizer()
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    return {token: index for index, token in enumerate(tokens)}


@pytest.fixture(scope="session")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `lightpeft train --compare`."""
    from lightpeft.cli.main import main

    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["train", "--model", str(tiny_model), "--out", str(out), "--compare", *QUICK]) == 0
    return out


QUICK = [
    *("--task", "demo/sentiment"),
    *("--train-limit", "64"),
    *("--estimation.steps", "4"),
    *("--training.max_steps", "10"),
    *("--training.batch_size", "8"),
    *("--training.max_length", "32"),
]


def read(path: Path) -> dict[str, object]:
    value = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value
