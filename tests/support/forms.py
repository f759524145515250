"""The forms of PEFT that can be cut, one row each, with weights under which every module shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from lightpeft import BottleneckConfig

if TYPE_CHECKING:
    from tests.support.zoo import Animal

GATED = (".lora_B", ".bottleneck_up")
"""Linears whose input channels are the ranks of a module."""


@dataclass(frozen=True)
class FormRow:
    """One form of PEFT."""

    name: str
    config: Callable[["Animal", PreTrainedModel, int], PeftConfig]
    linear: bool = True
    """Whether what goes can be folded into the base, and what stays merged."""

    def put_on(self, animal: "Animal", base: PreTrainedModel, rank: int = 3) -> PeftModel:
        """The form with living weights on a base of the zoo."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = get_peft_model(base, self.config(animal, base, rank))
            enliven(model)
        assert isinstance(model, PeftModel)
        return model


@torch.no_grad()
def enliven(model: PeftModel, adapter: str = "default") -> None:
    """Random weights, so that ΔW matters; DoRA's magnitudes stay near what they are."""
    for name, parameter in model.named_parameters():
        if f".{adapter}" not in name:
            continue
        noise = 0.2 * torch.randn_like(parameter)
        if ".lora_magnitude_vector." in name:
            parameter.mul_(1 + noise)
        elif ".lora_" in name or ".bottleneck_" in name:
            parameter.copy_(noise)


def module_names(model: PeftModel, adapter: str = "default") -> dict[str, str]:
    """Linear -> gated linear, both relative to the base, found by the state dict."""
    start = "base_model.model."
    found = {}
    for key in model.state_dict():
        for gated in GATED:
            end = f"{gated}.{adapter}.weight"
            if key.endswith(end):
                name = key.removeprefix(start).removesuffix(end)
                found[name] = f"{name}{gated}.{adapter}"
    return found


def _lora(**options: Any) -> Callable[["Animal", PreTrainedModel, int], PeftConfig]:
    def config(animal: "Animal", base: PreTrainedModel, rank: int) -> PeftConfig:
        return LoraConfig(
            r=rank,
            lora_alpha=4,
            lora_dropout=0.0,
            target_modules=animal.linears(base),
            fan_in_fan_out=animal.name == "gpt2",
            **options,
        )

    return config


def _bottleneck(form: str) -> Callable[["Animal", PreTrainedModel, int], PeftConfig]:
    def config(animal: "Animal", base: PreTrainedModel, rank: int) -> PeftConfig:
        return BottleneckConfig(form=form, size=rank, activation="gelu", scaling=1.5, init_weights=False)

    return config


FORM_ROWS = {
    row.name: row
    for row in (
        FormRow("lora", _lora()),
        FormRow("rslora", _lora(use_rslora=True)),
        FormRow("dora", _lora(use_dora=True)),
        FormRow("sequential", _bottleneck("sequential"), linear=False),
        FormRow("parallel", _bottleneck("parallel"), linear=False),
    )
}
