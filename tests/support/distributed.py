"""Runs that two processes do together as one does alone, with the same examples in each step."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer

from lightpeft import Budget, EstimationConfig, LightCallback, LightConfig, LightTrainer, SurgeryConfig
from tests.support.language import VOCABULARY
from tests.support.models import living_lora
from tests.support.runs import DEFAULT, ESTIMATION, PAPER, arguments, trainer

ROWS = 30
"""Of texts: the last step of a pass has rows for one process that the other does not have."""

FISHER = LightConfig(
    estimation=EstimationConfig(
        steps=ESTIMATION,
        base_score="fisher",
        module_score="fisher",
        rank_score="fisher",
        layer_score="cosine",
    ),
    budget=Budget(heads_scope="global", neurons_scope="global", layers=1 / 3),
    learning_rate_factor=1.0,
)
RECONSTRUCTING = dataclasses.replace(DEFAULT, surgery=SurgeryConfig(reconstruct_rank=32))
FREEZING = dataclasses.replace(DEFAULT, budget=Budget(frozen_layers=2))
Made = tuple[Trainer, LightCallback]


class Texts(Dataset[dict[str, Tensor]]):
    """Random tokens of three to nine, padded to nine, to be predicted."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        lengths = torch.randint(3, 10, (ROWS,), generator=generator)
        ids = torch.randint(3, len(VOCABULARY), (ROWS, 9), generator=generator)
        mask = torch.arange(9)[None] < lengths[:, None]
        self.columns = {
            "input_ids": ids * mask,
            "attention_mask": mask.long(),
            "labels": ids.where(mask, -100),
        }

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: column[index] for key, column in self.columns.items()}


@dataclass(frozen=True)
class Scenario:
    """One run."""

    make_with: Callable[..., Made]
    light: LightConfig
    rows: int = 8
    """In each backward pass of all processes together."""

    options: dict[str, Any] = field(default_factory=dict)
    """TrainingArguments."""

    def make(self, root: Path, folder: Path, processes: int) -> Made:
        """Trainer and callback of one of so many processes; the bases are in `root`."""
        batch = self.rows // processes
        return self.make_with(root, folder, self.light, per_device_train_batch_size=batch, **self.options)


def _light_trainer(root: Path, folder: Path, light: LightConfig, **options: Any) -> Made:
    run = trainer(root / "bert", folder, light, **_MEAN_LOSS | options)
    return run, run.light


def _callback(root: Path, folder: Path, light: LightConfig, **options: Any) -> Made:
    callback = LightCallback(light)
    run = trainer(root / "bert", folder, kind=Trainer, callbacks=[callback], **_MEAN_LOSS | options)
    return run, callback


def _language(root: Path, folder: Path, light: LightConfig, **options: Any) -> Made:
    base = AutoModelForCausalLM.from_pretrained(root / "llama")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = living_lora(base, config)
    run = LightTrainer(model=model, args=arguments(folder, **options), train_dataset=Texts(), light=light)
    return run, run.light


_MEAN_LOSS = {"average_tokens_across_devices": False}
"""The loss of BERT's classes is a mean over its own rows, whatever number of rows the Trainer tells it."""

SCENARIOS = {
    "mask": Scenario(_light_trainer, PAPER),
    "fisher": Scenario(
        _light_trainer,
        FISHER,
        rows=4,
        options={"gradient_accumulation_steps": 2, "train_sampling_strategy": "group_by_length"},
    ),
    "text": Scenario(
        _language,
        RECONSTRUCTING,
        options={"accelerator_config": {"even_batches": False}, "learning_rate": 3e-3},
    ),
    "callback": Scenario(
        _callback,
        FREEZING,
        options={
            "max_steps": 14,
            "ddp_find_unused_parameters": False,
            "save_strategy": "steps",
            "save_steps": 3,
            "save_total_limit": 2,
        },
    ),
}
