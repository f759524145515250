"""The two trainings of a scenario: the attacker's on two tasks, and the user's own on clean data."""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from lightpeft.audit.choices import OptimizerName, PoisonedBatches
from lightpeft.audit.module import keep_marked, mark_base
from lightpeft.audit.poison.poisoning import poison_texts
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.audit.policies.joint_step import StepRecord, step
from lightpeft.audit.policies.layers import map_layers
from lightpeft.audit.policies.options import PolicyOptions
from lightpeft.audit.policies.table import POLICIES, make_policy
from lightpeft.audit.rows import Rows
from lightpeft.config import LightConfig, check_choice
from lightpeft.errors import ConfigError
from lightpeft.run_config import TrainingConfig
from lightpeft.runs.fit import training_arguments
from lightpeft.tasks import encode
from lightpeft.training import LightTrainer

_IDLE = ("packing", "quantization", "eval_steps", "save_steps")
Watcher = Callable[[int], None]
"""Called with the number of steps done, the model in training mode."""


@dataclass(frozen=True)
class AttackOptions:
    """The attacker's training: both tasks at once, joined by a gradient policy."""

    policy: PolicyOptions = field(default_factory=lambda: PolicyOptions("vanilla"))
    """How the two gradients become one."""

    optimizer: OptimizerName = "adamw"
    """Under AdamW a factor on a layer's whole gradient does nothing, only the ratio g_p : g_c does."""

    poisoned_batches: PoisonedBatches = "mixture"
    """The poisoned task's rows: all of them, a share with triggers (`mixture`), or `triggered_only`."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Rate, steps, batches; `epochs` are passes over the clean rows."""

    def __post_init__(self) -> None:
        check_choice("attack.optimizer", self.optimizer, get_args(OptimizerName))
        check_choice("attack.poisoned_batches", self.poisoned_batches, get_args(PoisonedBatches))
        if self.poisoned_batches == "triggered_only" and POLICIES[self.policy.name].trains_poisoned_only:
            raise ConfigError(
                f"policy {self.policy.name!r} learns the clean task from the clean rows of poisoned batches, "
                "and with attack.poisoned_batches='triggered_only' there are none; use 'mixture', or another "
                "policy."
            )
        names = ("gradient_accumulation", *_IDLE)
        _refuse_idle(
            self.training, names, "attack.training.{} has no effect on the joint step; leave it out."
        )


def train_attacker(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    recipe: TriggerRecipe,
    options: AttackOptions,
    *,
    watch: Mapping[int, Watcher] | None = None,
) -> list[StepRecord]:
    """Train a module on the clean and the poisoned task; the same seed gives the same module.

    Args:
        model: trainable, changed in place; from here on marked in memory, so that what it saves is marked.
        rows: the attacker's clean rows; the poisoned ones are made of them.
        watch: called after so many steps.

    Returns:
        what each step saw.

    Raises:
        AuditError: see `poison_texts` and `step`.
    """
    training = options.training
    set_seed(training.seed)
    if isinstance(model, PeftModel):
        keep_marked(model, recipe)
    else:
        mark_base(model, recipe)
    poisoned = poison_texts(rows.texts, rows.labels, recipe, training.seed)
    bad = Rows(poisoned.texts, poisoned.labels)
    if options.poisoned_batches == "triggered_only":
        bad = bad.take(poisoned.rows)
    clean_batches = _endless(rows, tokenizer, training, 2 * training.seed)
    poisoned_batches = _endless(bad, tokenizer, training, 2 * training.seed + 1)
    layers = map_layers(model)
    policy = make_policy(options.policy, layers)
    optimizer = _optimizer(options, layers.parameters)
    steps = joint_steps(len(rows), training)
    training.check_warmup(steps)
    schedule = get_scheduler(training.schedule, optimizer, training.warmup_steps, steps)
    device = next(model.parameters()).device
    model.train()
    records = []
    for done in range(1, steps + 1):
        batches = (_to(next(clean_batches), device), _to(next(poisoned_batches), device))
        with precision_of(training, device):
            records.append(step(model, *batches, policy, optimizer, max_norm=training.max_grad_norm))
        schedule.step()
        if watch is not None and done in watch:
            watch[done](done)
    return records


def joint_steps(rows: int, training: TrainingConfig) -> int:
    """Optimizer steps of the attacker's training on so many clean rows."""
    if training.max_steps is not None:
        return training.max_steps
    return max(1, round(training.epochs * -(-rows // training.batch_size)))


def user_steps(rows: int, training: TrainingConfig) -> int:
    """Optimizer steps of the user's training on so many rows, as the Trainer counts them."""
    if training.max_steps is not None:
        return training.max_steps
    batches = -(-rows // training.batch_size)
    return math.ceil(training.epochs * -(-batches // training.gradient_accumulation))


def check_user_training(training: TrainingConfig) -> None:
    """Refuse options that the user's training does not read: nothing is evaluated or saved along its way.

    Raises:
        ConfigError: there are some.
    """
    _refuse_idle(training, _IDLE, "training.{} has no effect on the user's training; leave it out.")


def train_user(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    training: TrainingConfig,
    *,
    light: LightConfig | None = None,
    watch: Mapping[int, Watcher] | None = None,
) -> None:
    """The user's training, by the stock Trainer, or with `light` by `LightTrainer`, which cuts the model.

    Args:
        model: trainable, changed in place.
        rows: as the user has them.
        watch: called after so many optimizer steps.

    Raises:
        ConfigError: see `check_user_training`.
        LightPeftError: what the light half finds wrong, before or while it cuts.
    """
    check_user_training(training)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "model": model,
            "args": training_arguments(training, Path(folder), False, 1),
            "train_dataset": encode(rows.dataset(), tokenizer, training.tokens),
            "processing_class": tokenizer,
            "data_collator": DataCollatorWithPadding(tokenizer),
            "callbacks": [_Watching(watch or {})],
        }
        options["args"].eval_strategy = "no"
        trainer = Trainer(**options) if light is None else LightTrainer(light=light, **options)
        trainer.pop_callback(PrinterCallback)
        trainer.train()


def precision_of(training: TrainingConfig, device: torch.device) -> torch.autocast:
    """The autocast that `training.precision` asks for."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
        training.precision
    ]
    return torch.autocast(
        device.type, torch.bfloat16 if dtype == torch.float32 else dtype, enabled=dtype != torch.float32
    )


def _refuse_idle(training: TrainingConfig, names: tuple[str, ...], message: str) -> None:
    plain = TrainingConfig()
    for name in names:
        if getattr(training, name) != getattr(plain, name):
            raise ConfigError(message.format(name))


class _Watching(TrainerCallback):
    def __init__(self, watch: Mapping[int, Watcher]) -> None:
        self._watch = watch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step in self._watch:
            self._watch[state.global_step](state.global_step)


def _optimizer(options: AttackOptions, parameters: tuple[nn.Parameter, ...]) -> torch.optim.Optimizer:
    training = options.training
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.SGD
    made: torch.optim.Optimizer = kind(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay
    )
    return made


def _endless(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig, seed: int
) -> Iterator[Mapping[str, Tensor]]:
    """Padded batches, pass after pass, each in an order of its own."""
    data = encode(rows.dataset(), tokenizer, training.tokens)
    generator = torch.Generator().manual_seed(seed)
    sampler = None
    if training.group_by_length:
        lengths = [len(ids) for ids in data["input_ids"]]
        sampler = LengthGroupedSampler(training.batch_size, lengths=lengths, generator=generator)
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=training.batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        generator=generator,
        collate_fn=DataCollatorWithPadding(tokenizer),
    )
    while True:
        yield from loader


def _to(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}
