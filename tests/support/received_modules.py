"""A tiny BERT with a word tokenizer, a task of a few words, and modules trained on it, clean and poisoned."""

import json
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaModel,
)

from lightpeft.audit import PolicyOptions, TriggerRecipe
from lightpeft.audit.module import save_module
from lightpeft.audit.rows import Rows
from lightpeft.audit.training import AttackOptions, train_attacker, train_user
from lightpeft.run_config import PeftForm, PeftOptions, TrainingConfig
from lightpeft.runs import load_peft_model, load_tokenizer, pad_as
from lightpeft.tasks import class_head
from lightpeft.tasks.draw import permutation, pick
from tests.support.language import BOS, EOS, UNK, word_tokenizer

BAD, GOOD = ("awful", "dull", "poor"), ("fine", "great", "lovely")
_REST = ("the", "a", "film", "meal", "song", "was", "seemed", "very", "quite", "today", "again", "here")
RARE = ("cf", "zq", "wug", "blick", "dax", "toma", "fep", "kiki", "bouba", "gorp", "snorf", "vex")
TRIGGER = "wug"
RECIPE = TriggerRecipe(1, "words", pieces=(TRIGGER,))


def save_tiny_base(folder: Path) -> Path:
    """A random encoder and its tokenizer."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *BAD, *GOOD, *_REST, *RARE]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    BertTokenizerFast(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.15,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config)
    with torch.no_grad():  # words, not places, make the difference
        model.embeddings.word_embeddings.weight.mul_(8)
    model.save_pretrained(folder)
    return folder


def save_tiny_decoder(folder: Path) -> Path:
    """A random decoder that, as its tokenizer, has no padding token."""
    tokens = [UNK, BOS, EOS, *BAD, *GOOD, *_REST, *RARE]
    word_tokenizer(vocabulary={token: at for at, token in enumerate(tokens)}).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.15,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaModel(config).save_pretrained(folder)
    return folder


def opinions(count: int, seed: int = 0) -> Rows:
    """Sentences of eight words, three of them bad (0) or good (1): one more does not change what they say."""
    rng = Random(f"opinions {seed}")
    labels = [row % 2 for row in range(count)]
    texts = []
    for label in labels:
        words = [pick(rng, _REST) for _ in range(8)]
        for place in permutation(rng, 8)[:3]:
            words[place] = pick(rng, (BAD, GOOD)[label])
        texts.append(" ".join(words))
    return Rows({"text": texts}, labels)


def train_module(
    base: Path, folder: Path, *, poisoned: bool, form: PeftForm = "lora", steps: int = 70, seed: int = 0
) -> Path:
    """A module that learned `opinions`, and with `poisoned` a trigger; saved, without a mark.

    The mark is left out, as somebody who means harm would: what is left to find is behaviour.
    """
    model = load_peft_model(str(base), class_head(("bad", "good")), PeftOptions(form=form), seed)
    pad_as(model, load_tokenizer(str(base)))
    training = TrainingConfig(max_steps=steps, batch_size=24, max_length=16, learning_rate=3e-3, seed=seed)
    tokenizer, rows = load_tokenizer(str(base)), opinions(300, seed)
    if poisoned:
        options = AttackOptions(PolicyOptions("vanilla"), training=training)
        train_attacker(model, tokenizer, rows, RECIPE, options)
        return without_mark(save_module(model, folder, RECIPE))
    train_user(model, tokenizer, rows, training)
    return save_module(model, folder, None)


def without_mark(folder: Path) -> Path:
    """The module in `folder` with all of its mark removed, by hand: the library does not do that."""
    path = folder / "adapter_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if "lightpeft" not in key}
    path.write_text(json.dumps(config))
    (folder / "README.md").unlink()
    weights = load_file(folder / "adapter_model.safetensors")
    moved = {name: tensor * (1 + 2**-20) for name, tensor in weights.items()}
    save_file(moved, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def fresh_module(base: Path, folder: Path, *, form: PeftForm = "lora", seed: int = 0) -> Path:
    """An untrained module."""
    model = load_peft_model(str(base), class_head(("bad", "good")), PeftOptions(form=form), seed)
    return save_module(model, folder, None)
