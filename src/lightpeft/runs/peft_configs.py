"""PEFT's configuration for a base, from what a user asked for: one row per form."""

from collections.abc import Callable, Sequence
from typing import Any

from peft import LoraConfig, PeftConfig, TaskType
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightpeft.adapters import BottleneckConfig
from lightpeft.anatomy import Anatomy
from lightpeft.errors import ConfigError
from lightpeft.run_config import PeftForm, PeftOptions


def peft_config(
    options: PeftOptions, base: PreTrainedModel, anatomy: Anatomy, task: TaskType, new: Sequence[str]
) -> PeftConfig:
    """The configuration of a fresh adapter.

    Args:
        new: modules without weights, which are trained and saved whole.

    Raises:
        ConfigError: options that the form refuses.
    """
    config: PeftConfig = _FORMS[options.form](options, base, anatomy, task_type=task, new=list(new))
    return config


def target_modules(anatomy: Anatomy, targets: str | list[str]) -> list[str]:
    """Full names of the linears that get LoRA; names that PEFT resolves itself are passed on.

    Raises:
        ConfigError: an unknown keyword.
    """
    if isinstance(targets, list):
        return targets
    if targets == "query-value":
        return _linears(anatomy, {"query", "value", "fused"})
    if targets != "all":
        raise ConfigError(f"lora.targets is {targets!r}; choose all, query-value, or a list of names.")
    return [name for layer in anatomy.layers for units in layer.units for name in units.linears]


def _linears(anatomy: Anatomy, roles: set[str]) -> list[str]:
    rows = [row for layer in anatomy.layers for units in layer.units for row in units.rows]
    return list(dict.fromkeys(row.name for row in rows if row.role in roles))


def _lora(
    options: PeftOptions, base: PreTrainedModel, anatomy: Anatomy, *, task_type: TaskType, new: list[str]
) -> PeftConfig:
    lora = options.lora
    return LoraConfig(
        task_type=task_type,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        bias=lora.bias,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        target_modules=target_modules(anatomy, lora.targets),
        modules_to_save=sorted({*new, *lora.modules_to_save}),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
    )


def _bottleneck(
    options: PeftOptions, base: PreTrainedModel, anatomy: Anatomy, *, task_type: TaskType, new: list[str]
) -> PeftConfig:
    del base, anatomy
    wanted = options.bottleneck
    return BottleneckConfig(
        task_type=task_type,
        form="parallel" if options.form == "parallel" else "sequential",
        sites=tuple(wanted.sites),
        size=wanted.size,
        reduction_factor=wanted.reduction_factor,
        activation=wanted.activation,
        dropout=wanted.dropout,
        scaling=wanted.scaling,
        layer_norm=wanted.layer_norm,
        modules_to_save=new,
    )


_FORMS: dict[PeftForm, Callable[..., Any]] = {
    "lora": _lora,
    "sequential": _bottleneck,
    "parallel": _bottleneck,
}
