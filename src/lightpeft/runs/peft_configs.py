"""PEFT's configuration for a base, from what a user asked for: one row per form."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from peft import LoraConfig, PeftConfig, TaskType
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightpeft.adapters import BottleneckConfig
from lightpeft.anatomy import Anatomy
from lightpeft.errors import ConfigError, did_you_mean, listed
from lightpeft.run_config import PeftForm, PeftOptions

_TARGETS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, Conv1D)
"""What LoRA can sit on."""


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


def target_modules(base: nn.Module, anatomy: Anatomy, targets: str | list[str]) -> list[str]:
    """Full names of the linears that get LoRA; names that PEFT resolves itself are passed on.

    Raises:
        ConfigError: a name that no module of the base has.
    """
    if targets == "query-value":
        return _linears(anatomy, {"query", "value", "fused"})
    if targets == "all":
        return [name for layer in anatomy.layers for units in layer.units for name in units.linears]
    names = [targets] if isinstance(targets, str) else targets
    if not names:
        raise ConfigError("lora.targets is empty; choose all, query-value, or names of modules.")
    known = [name for name, module in base.named_modules() if isinstance(module, _TARGETS)]
    _require_modules("lora.targets", names, known, "; or choose all, query-value")
    return names


def _require_modules(option: str, names: Sequence[str], known: Sequence[str], more: str = "") -> None:
    """Refuse names, or ends of names, that no module of the base has."""
    for name in names:
        if any(full == name or full.endswith(f".{name}") for full in known):
            continue
        ends = list(dict.fromkeys(full.rpartition(".")[2] for full in known))
        raise ConfigError(
            f"{option} has {name!r}, which fits no module of the base.{did_you_mean(name, ends)} "
            f"Its modules: {listed(ends)}{more}."
        )


def _require_patterns(option: str, patterns: Iterable[str], targets: Sequence[str], base: nn.Module) -> None:
    """Refuse regular expressions that no module with LoRA matches; PEFT would ignore them."""
    full = [
        name
        for name, _ in base.named_modules()
        if any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    for pattern in patterns:
        try:
            matches = [name for name in full if re.match(rf"(.*\.)?({pattern})$", name)]  # as PEFT asks it
        except re.error as error:
            raise ConfigError(f"{option} has {pattern!r}, no regular expression: {error}.") from error
        if not matches:
            raise ConfigError(
                f"{option} has {pattern!r}, which no module with LoRA matches: {listed(full, 8)}."
            )


def _linears(anatomy: Anatomy, roles: set[str]) -> list[str]:
    rows = [row for layer in anatomy.layers for units in layer.units for row in units.rows]
    return list(dict.fromkeys(row.name for row in rows if row.role in roles))


def _lora(
    options: PeftOptions, base: PreTrainedModel, anatomy: Anatomy, *, task_type: TaskType, new: list[str]
) -> PeftConfig:
    lora = options.lora
    targets = target_modules(base, anatomy, lora.targets)
    named = [name for name, _ in base.named_modules() if name and not name.endswith(tuple("0123456789"))]
    _require_modules("lora.modules_to_save", lora.modules_to_save, named)
    _require_patterns("lora.rank_pattern", lora.rank_pattern, targets, base)
    _require_patterns("lora.alpha_pattern", lora.alpha_pattern, targets, base)
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
        target_modules=targets,
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
