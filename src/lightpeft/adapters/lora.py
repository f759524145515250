"""LoRA pairs seen as prunable PEFT modules: what estimation reads and what surgery changes."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lightpeft.edits import Journal
from lightpeft.errors import AnatomyError
from lightpeft.linears import INPUTS, OUTPUTS, Projection, is_plain_linear


@dataclass(frozen=True)
class LoraModule:
    """One LoRA pair on one linear: `W x + scaling · B A x`, A (r, d_in), B (d_out, r)."""

    name: str
    """Name of the linear it sits on, relative to the base model."""

    layer: LoraLinear
    adapter: str

    @property
    def lora_a(self) -> nn.Linear:
        """A, weight (r, d_in)."""
        return self._part(self.layer.lora_A)

    @property
    def lora_b(self) -> nn.Linear:
        """B, weight (d_out, r). Its input's channels are the ranks."""
        return self._part(self.layer.lora_B)

    @property
    def base_linear(self) -> Projection:
        """The frozen linear underneath."""
        base = self.layer.get_base_layer()
        assert is_plain_linear(base)
        return base

    @property
    def rank(self) -> int:
        """r, the number of ranks."""
        return self.lora_a.out_features

    @property
    def scaling(self) -> float:
        """Factor in front of B A."""
        return float(self.layer.scaling[self.adapter])

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """The trained weights (A, B)."""
        return self.lora_a.weight, self.lora_b.weight

    def low_rank_pair(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the pair of some ranks, scaling inside: (d_out, k) and (k, d_in), `left @ right = ΔW`."""
        left = self.lora_b.weight.detach()[:, ranks] * self.scaling
        return left.contiguous(), self.lora_a.weight.detach()[ranks].clone()

    def keep_ranks(self, kept: Tensor, journal: Journal) -> None:
        """Keep some ranks; the scaling stays what it was (alpha follows the new rank)."""
        journal.slice_linear(self.lora_a, OUTPUTS, kept)
        journal.slice_linear(self.lora_b, INPUTS, kept)
        journal.set_item(self.layer.r, self.adapter, len(kept))
        alpha = self.scaling * (math.sqrt(len(kept)) if self._uses_rslora else len(kept))
        journal.set_item(self.layer.lora_alpha, self.adapter, alpha)

    def keep_inputs(self, kept: Tensor, journal: Journal) -> None:
        """Follow a cut of the linear's inputs."""
        journal.slice_linear(self.lora_a, INPUTS, kept)
        journal.set_attribute(self.layer, "in_features", len(kept))

    def keep_outputs(self, kept: Tensor, journal: Journal) -> None:
        """Follow a cut of the linear's outputs."""
        journal.slice_linear(self.lora_b, OUTPUTS, kept)
        journal.set_attribute(self.layer, "out_features", len(kept))

    def scale_inputs(self, factors: Tensor, journal: Journal) -> None:
        """Multiply each input channel (d_in,) of the pair, as a gate before the linear did."""
        weight = self.lora_a.weight
        journal.assign(weight, weight.data * factors.to(weight))

    def remove(self, base: nn.Module, journal: Journal) -> None:
        """Take the pair off its linear."""
        journal.replace_module(base, self.name, self.base_linear)
        journal.drop(self.parameters)

    @property
    def _uses_rslora(self) -> bool:
        return bool(self.layer.use_rslora[self.adapter])

    def _part(self, pairs: nn.ModuleDict) -> nn.Linear:
        part = pairs[self.adapter]
        if not isinstance(part, nn.Linear):
            raise AnatomyError(f"{self.name}: LoRA on a {type(part).__name__} cannot be cut.")
        return part


def active_adapter(model: PeftModel) -> str:
    """The one adapter that is estimated and cut.

    Raises:
        AnatomyError: several adapters are loaded, none is active, or it is merged or not plain LoRA.
    """
    names = list(model.peft_config)
    if len(names) != 1 or model.active_adapters != names:
        raise AnatomyError(
            f"found the adapters {names}, active {model.active_adapters}; lightpeft works on a model "
            "with one active adapter. Delete the others first (model.delete_adapter)."
        )
    config = model.peft_config[names[0]]
    if not isinstance(config, LoraConfig):
        raise AnatomyError(f"found PEFT type {config.peft_type}; only LoRA can be cut.")
    unsupported = [
        key
        for key in (
            "use_dora",
            "lora_bias",
            "alora_invocation_tokens",
            "megatron_config",
            "target_parameters",
            "layer_replication",
        )
        if getattr(config, key, None)
    ]
    if unsupported or config.bias != "none":
        found = ", ".join(unsupported) or f"bias={config.bias!r}"
        raise AnatomyError(f"found LoRA with {found}; only plain and rank-stabilised LoRA can be cut.")
    return names[0]


def find_lora_modules(model: nn.Module) -> tuple[LoraModule, ...]:
    """The LoRA pairs of `model`, in module order; none for a model without PEFT.

    Raises:
        AnatomyError: see `active_adapter`; or LoRA on something that is not a plain linear.
    """
    if not isinstance(model, PeftModel):
        return ()
    adapter = active_adapter(model)
    found = []
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if not isinstance(module, LoraLinear) or not is_plain_linear(module.get_base_layer()):
            raise AnatomyError(
                f"{name} carries LoRA on a {type(module.get_base_layer()).__name__}; "
                "only LoRA on nn.Linear and Conv1D can be cut. Leave it out of target_modules."
            )
        if module.merged:
            raise AnatomyError(f"{name} has its LoRA merged; call model.unmerge_adapter() first.")
        found.append(LoraModule(name, module, adapter))
    return tuple(found)


def describe_in_config(model: PeftModel, modules: Sequence[LoraModule], journal: Journal) -> None:
    """Make the LoRA configuration say exactly what is left, so that stock PEFT rebuilds it."""
    config = model.peft_config[active_adapter(model)]
    patterns = {re.escape(module.name): module for module in modules}
    wanted = {
        "target_modules": {module.name for module in modules},
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {key: module.rank for key, module in patterns.items()},
        "alpha_pattern": {key: module.layer.lora_alpha[module.adapter] for key, module in patterns.items()},
    }
    for key, value in wanted.items():
        journal.set_attribute(config, key, value)
    journal.set_attribute(model.base_model, "targeted_module_names", [module.name for module in modules])
