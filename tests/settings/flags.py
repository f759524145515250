"""Rows: what TrainingArguments and a Trainer's own arguments can switch on."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR, StepLR
from transformers import EarlyStoppingCallback, Trainer

from tests.settings.kinds import WORDY
from tests.settings.row import Row, Setting

SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
EVALUATES: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2}
BEST: dict[str, Any] = EVALUATES | {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}


def _with(name: str, **arguments: Any) -> Row:
    return Row(name, arguments=arguments)


def _scheduled_by(name: str, **arguments: Any) -> Row:
    return Row(name, arguments=arguments, scheduled=True)


def _checkpointing(reentrant: bool) -> dict[str, Any]:
    options = {"use_reentrant": reentrant}
    return {"activation_checkpointing": True, "activation_checkpointing_kwargs": options}


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _optimizer(make: Any, **options: Any) -> dict[str, Any]:
    return {"optimizers": lambda model: (make(_trainable(model), **({"lr": 1e-3} | options)), None)}


def _scheduled(schedule: Any, **options: Any) -> dict[str, Any]:
    def both(model: nn.Module) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(_trainable(model), lr=1e-3)
        return optimizer, schedule(optimizer, **options)

    return {"optimizers": both}


class FlatState(torch.optim.Optimizer):
    """An optimizer whose state is one row of numbers a parameter."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        """Plain descent with momentum."""
        for group in self.param_groups:
            for parameter in (one for one in group["params"] if one.grad is not None):
                flat = self.state[parameter].setdefault("flat", torch.zeros(parameter.numel()))
                flat.mul_(0.9).add_(parameter.grad.flatten())
                parameter.data.sub_(flat.view_as(parameter), alpha=group["lr"])


class BlockState(torch.optim.Optimizer):
    """An optimizer that knows the largest of every eight numbers, as 8-bit ones do."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        """Plain descent, scaled by blocks."""
        for group in self.param_groups:
            for parameter in (one for one in group["params"] if one.grad is not None):
                blocks = nn.functional.pad(parameter.grad.flatten(), (0, -parameter.numel() % 8)).view(-1, 8)
                largest = self.state[parameter].setdefault("largest", torch.ones(len(blocks)))
                largest.copy_(blocks.abs().amax(1).clamp(min=1e-6))
                scaled = (blocks / largest[:, None]).flatten()[: parameter.numel()]
                parameter.data.sub_(scaled.view_as(parameter), alpha=group["lr"])


def _loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(outputs["logits"], labels, label_smoothing=0.05)


def _metrics(prediction: Any, compute_result: bool = True) -> dict[str, float]:
    return {"largest": float(torch.as_tensor(prediction.predictions).max())}


class KeepsLosses(Trainer):
    """Adds up losses without detaching them, as scripts do for their own log."""

    total: Any = 0.0
    kept: Any = None

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's loss, kept with its graph."""
        loss, self.kept = super().compute_loss(model, inputs, return_outputs=True)
        self.total = self.total + loss
        return loss


class OutOfMemory(Trainer):
    """The batch of the first try does not fit, from some step on."""

    at = 2
    taken = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A step, or what CUDA says when memory ends."""
        self.taken += 1
        if self.taken == self.at:
            raise RuntimeError("CUDA out of memory. (as a test)")
        return super().training_step(*args, **kwargs)


class OutOfMemoryAfterTheCut(OutOfMemory):
    """The same, once the model is another one."""

    at = 6


def _with_trainer(kind: type) -> Any:
    return lambda setting: setting.train(kind=kind).model


def _evaluated_in_bf16(setting: Setting) -> nn.Module:
    trainer = setting.train()
    trainer.evaluate()
    return trainer.model


def _deterministic(setting: Setting) -> nn.Module:
    try:
        return setting.train().model
    finally:
        torch.use_deterministic_algorithms(False)


LOOP = [
    _with("plain"),
    _with("label smoothing", label_smoothing_factor=0.1),
    _with("NEFTune", neftune_noise_alpha=5.0),
    _with("accumulation", gradient_accumulation_steps=2, per_device_train_batch_size=2),
    _with("no clipping", max_grad_norm=0.0),
    _with("clipping", max_grad_norm=1e-3),
    _with("checkpointing, reentrant", **_checkpointing(True)),
    _with("checkpointing, not reentrant", **_checkpointing(False)),
    _with("grouped by length", train_sampling_strategy="group_by_length"),
    _with("in order", train_sampling_strategy="sequential"),
    _with("epochs", max_steps=-1, num_train_epochs=2, per_device_train_batch_size=8),
    _with("last batch dropped", dataloader_drop_last=True),
    _with("workers", dataloader_num_workers=1, dataloader_persistent_workers=True),
    _with("columns kept", remove_unused_columns=False),
    _with("label names", label_names=["labels"]),
    _with("seed of the data", data_seed=3),
    _with("weight decay", weight_decay=0.1),
    _with("cache emptied", torch_empty_cache_steps=1),
    _with("tokens not averaged", average_tokens_across_devices=False),
    _with("batches found automatically", auto_find_batch_size=True),
    Row("batches too large", arguments={"auto_find_batch_size": True}, run=_with_trainer(OutOfMemory)),
    Row(
        "batches too large after the cut",
        arguments={"auto_find_batch_size": True},
        run=_with_trainer(OutOfMemoryAfterTheCut),
    ),
    Row("deterministic", arguments={"full_determinism": True}, run=_deterministic),
    Row("own loss", trainer={"compute_loss_func": lambda _: _loss}),
    Row("losses kept with their graphs", run=_with_trainer(KeepsLosses)),
    Row("cache on", WORDY, {"use_cache": True}),
    Row(
        "torch.compile",
        arguments={"torch_compile": True, "torch_compile_backend": "eager"},
        warns=("The .grad attribute",),
    ),
]

LOGS = [
    _with("tokens counted", include_num_input_tokens_seen="all", logging_strategy="steps", logging_steps=1),
    _with("NaN in the log", logging_nan_inf_filter=False, logging_strategy="steps", logging_steps=1),
    _with("memory measured", skip_memory_metrics=False),
]

EVALUATIONS = [
    _with("evaluation at every step", eval_strategy="steps", eval_steps=1),
    _with("evaluation at the start", eval_on_start=True, **EVALUATES),
    _with("evaluation after a delay", eval_delay=4, **EVALUATES),
    _with("evaluation of epochs", eval_strategy="epoch"),
    _with("losses only", prediction_loss_only=True, **EVALUATES),
    _with("evaluation in pieces", eval_accumulation_steps=1, **EVALUATES),
    _with("evaluation not joined", eval_do_concat_batches=False, **EVALUATES),
    Row("metrics", arguments=EVALUATES, trainer={"compute_metrics": lambda _: _metrics}),
    Row("bf16 evaluation", arguments={"bf16_full_eval": True}, run=_evaluated_in_bf16),
]

SAVING = [
    Row("checkpoints", arguments=SAVES, resume=(2, 4)),
    Row("checkpoints of epochs", arguments={"save_strategy": "epoch"}),
    Row("few checkpoints", arguments=SAVES | {"save_total_limit": 1}, resume=(8,)),
    Row("checkpoints of the model only", arguments=SAVES | {"save_only_model": True}),
    Row("best model", arguments=SAVES | BEST),
    Row(
        "best model of epochs",
        arguments={"save_strategy": "epoch", "eval_strategy": "epoch"} | {"load_best_model_at_end": True},
    ),
    Row("best checkpoint only", arguments=BEST | {"save_strategy": "best"}),
    Row("early stop", arguments=SAVES | BEST, trainer={"callbacks": [EarlyStoppingCallback(3)]}),
    Row(
        "states of callbacks",
        arguments=SAVES | {"restore_callback_states_from_checkpoint": True},
        resume=(2, 6),
    ),
    Row("data not skipped", arguments=SAVES | {"ignore_data_skip": True}),
    Row("checkpoints while accumulating", arguments=SAVES | {"gradient_accumulation_steps": 2}, resume=(6,)),
    Row("checkpoints under bf16", arguments=SAVES | {"bf16": True}, resume=(2, 6)),
    Row("checkpoints with NEFTune", arguments=SAVES | {"neftune_noise_alpha": 5.0}, resume=(6,)),
    Row("checkpoints of SGD", arguments=SAVES | {"optim": "sgd", "optim_args": "momentum=0.9"}, resume=(6,)),
    Row("checkpoints of Adafactor", arguments=SAVES | {"optim": "adafactor"}, resume=(6,)),
]

ANEW = ("the state of (Flat|Block)State cannot be cut", "(Flat|Block)State keeps state that cannot be cut")

OPTIMIZERS = [
    *(
        _with(f"optimizer {name}", optim=name)
        for name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
    ),
    *(
        Row(f"optimizer {make.__name__}", trainer=_optimizer(make))
        for make in (
            torch.optim.NAdam,
            torch.optim.RAdam,
            torch.optim.Adamax,
            torch.optim.Adadelta,
            torch.optim.ASGD,
            torch.optim.Rprop,
        )
    ),
    Row("optimizer AMSGrad", trainer=_optimizer(torch.optim.AdamW, amsgrad=True)),
    Row("optimizer with foreach", trainer=_optimizer(torch.optim.AdamW, foreach=True)),
    Row("optimizer with flat state", trainer=_optimizer(FlatState), warns=ANEW),
    Row("optimizer with state of blocks", trainer=_optimizer(BlockState), warns=ANEW),
]

SCHEDULES = [
    *(
        _scheduled_by(f"schedule {name}", lr_scheduler_type=name, warmup_steps=2)
        for name in (
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "constant",
            "constant_with_warmup",
            "inverse_sqrt",
        )
    ),
    _scheduled_by("schedule with a warm-up share", warmup_steps=0.3),
    _scheduled_by("schedule reduce_lr_on_plateau", lr_scheduler_type="reduce_lr_on_plateau", **EVALUATES),
    *(
        _scheduled_by(
            f"schedule {name}",
            lr_scheduler_type=name,
            warmup_steps=2,
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
        )
        for name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
    ),
    _scheduled_by(
        "schedule warmup_stable_decay",
        lr_scheduler_type="warmup_stable_decay",
        warmup_steps=2,
        lr_scheduler_kwargs={"num_decay_steps": 2},
    ),
    Row("schedule StepLR", scheduled=True, trainer=_scheduled(StepLR, step_size=2)),
    Row(
        "schedule CosineAnnealingWarmRestarts",
        scheduled=True,
        trainer=_scheduled(CosineAnnealingWarmRestarts, T_0=3),
    ),
    Row("schedule OneCycleLR", scheduled=True, trainer=_scheduled(OneCycleLR, max_lr=1e-3, total_steps=20)),
    Row(
        "schedule CyclicLR",
        scheduled=True,
        trainer=_scheduled(CyclicLR, base_lr=1e-4, max_lr=1e-3, step_size_up=2, cycle_momentum=False),
    ),
]

FLAGS = [*LOOP, *LOGS, *EVALUATIONS, *SAVING, *OPTIMIZERS, *SCHEDULES]
