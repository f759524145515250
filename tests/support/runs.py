"""Tiny training runs with a Trainer; also run as a child process by the SIGKILL tests."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments

from lightpeft import Budget, EstimationConfig, LightConfig, LightTrainer
from tests.support.models import load_base, make_batch, with_lora

STEPS, ESTIMATION = 10, 4

DEFAULT = LightConfig(estimation=EstimationConfig(steps=ESTIMATION), learning_rate_factor=1.0)
PAPER = dataclasses.replace(
    LightConfig.preset("paper"),
    estimation=dataclasses.replace(
        LightConfig.preset("paper").estimation, steps=ESTIMATION, gate_learning_rate=0.05
    ),
    budget=dataclasses.replace(LightConfig.preset("paper").budget, modules=0.5),
)
AUTO = LightConfig(
    estimation=EstimationConfig(window="second_half"),
    budget=Budget(neurons_scope="global"),
)
FASTER = dataclasses.replace(
    DEFAULT, learning_rate_factor=2.0, surgery=dataclasses.replace(DEFAULT.surgery, reconstruct_rank=4)
)
CONFIGS = {"default": DEFAULT, "paper": PAPER, "auto": AUTO, "faster, reconstructing": FASTER}


class Sentences(Dataset[dict[str, Tensor]]):
    """Random token rows of different lengths, padded to ten, with labels."""

    def __init__(self, rows: int = 32, seed: int = 0, name: str = "bert") -> None:
        batches = [make_batch(name, labels=True, seed=seed + i) for i in range(rows // 4)]
        self.columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: column[index] for key, column in self.columns.items()}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Quiet arguments of a tiny run on the CPU."""
    defaults: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    return TrainingArguments(output_dir=str(folder), **(defaults | options))


def fresh_model(base: Path, **options: Any) -> PeftModel:
    """A model that every run starts from."""
    return with_lora(load_base(base), **options)


def trainer(
    base: Path,
    folder: Path,
    light: LightConfig = DEFAULT,
    *,
    model: PeftModel | None = None,
    kind: type = LightTrainer,
    callbacks: list[Any] | None = None,
    **options: Any,
) -> Any:
    """A Trainer over the tiny data set; `options` are TrainingArguments."""
    model = model or fresh_model(base)
    name = model.get_base_model().config.model_type
    more: dict[str, Any] = {"light": light} if issubclass(kind, LightTrainer) else {}
    return kind(
        model=model,
        args=arguments(folder, **options),
        train_dataset=Sentences(name=name),
        eval_dataset=Sentences(8, seed=50, name=name),
        callbacks=callbacks,
        **more,
    )


class NoStep(LightTrainer):
    """A Trainer that must refuse before it trains."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a step was taken")


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """What training made: all tensors but the random heads that PEFT keeps aside."""
    return {
        key: value.detach().clone()
        for key, value in model.state_dict().items()
        if ".original_module." not in key
    }
