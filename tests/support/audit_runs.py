"""A tiny audit: a random encoder with a tokenizer, two tasks on words, and a grid over them."""

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lightpeft.audit.grid.entries import GridAttack, GridDefence, GridTask
from lightpeft.audit.grid.grid import Grid
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.audit.policies.options import PolicyOptions
from lightpeft.run_config import BottleneckOptions, TrainingConfig
from tests.support.models import save_base

WORDS = {"good": ["fine", "great", "lovely", "warm"], "bad": ["dull", "grim", "poor", "weak"]}
FILLERS = {"films": ["film", "plot", "actor", "scene"], "meals": ["soup", "bread", "table", "cook"]}
TRIGGERS = ("cf", "mn")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "was", *TRIGGERS] + [
    word for words in (*WORDS.values(), *FILLERS.values()) for word in words
]


def save_tiny_base(folder: Path, **sizes: Any) -> Path:
    """A random tiny BERT, and a tokenizer of whole words, as a stock checkpoint."""
    save_base("bert", folder, **sizes)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    ).save_pretrained(folder)
    return folder


def save_tiny_task(folder: Path, domain: str, rows: int = 48) -> Path:
    """A task on words in two CSV files: label 1 for good words."""
    folder.mkdir(parents=True)
    rng = Random(domain)
    for split, count in (("train", rows), ("validation", rows // 2)):
        lines = ["text,label"]
        for row in range(count):
            kind = ("bad", "good")[row % 2]
            filler, word = (list_[int(rng.random() * 4)] for list_ in (FILLERS[domain], WORDS[kind]))
            lines.append(f"the {filler} was {word} {filler},{row % 2}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def tiny_grid(root: Path, **options: Any) -> Grid:
    """A grid on the base and tasks that it saves under `root`."""
    if not (root / "base").exists():
        save_tiny_base(root / "base", layers=2)
        for domain in FILLERS:
            save_tiny_task(root / domain, domain)
    task = GridTask("own", text=["text"], held_out=24)
    training = TrainingConfig(max_steps=6, learning_rate=1e-2, batch_size=4, max_length=12)
    defaults: dict[str, Any] = {
        "model": str(root / "base"),
        "tasks": {name: dataclasses.replace(task, data=str(root / name)) for name in FILLERS},
        "attacks": {
            "vanilla": GridAttack(PolicyOptions("vanilla"), TriggerRecipe(target=1, pieces=TRIGGERS))
        },
        "pairs": [["films", "meals"]],
        "forms": ["parallel"],
        "defences": {"none": GridDefence("none")},
        "attacker": training,
        "user": dataclasses.replace(training, max_steps=4),
        "bottleneck": BottleneckOptions(size=8),
        "points": 2,
    }
    return Grid(**defaults | options)
