"""LoRA pairs as prunable PEFT modules: plain, rank-stabilised, and weight-decomposed (DoRA)."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lightpeft.adapters.view import Follower, Form, Note, PeftModule, share_of, token_norms
from lightpeft.edits import Journal
from lightpeft.errors import AnatomyError
from lightpeft.linears import INPUTS, OUTPUTS, is_plain_linear, is_quantised, matrix
from lightpeft.wrapping import tied_parameters

DORA = "DoraLinearVariant"
_STATE = ("r", "lora_alpha", "scaling", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "lora_variant")
_WEIGHTS = ("lora_A", "lora_B", "lora_magnitude_vector")


@dataclass(frozen=True)
class LoraModule(PeftModule):
    """One LoRA pair on one linear: `W x + scaling · B A x`, A (r, d_in), B (d_out, r)."""

    @property
    def lora_a(self) -> nn.Linear:
        """A, weight (r, d_in)."""
        return _part(self.layer.lora_A, self)

    @property
    def lora_b(self) -> nn.Linear:
        """B, weight (d_out, r). Its input's channels are the ranks."""
        return _part(self.layer.lora_B, self)

    @property
    def gated(self) -> str:
        """B."""
        return f"{self.name}.lora_B.{self.adapter}"

    @property
    def rank(self) -> int:
        """r, the number of ranks."""
        return self.lora_a.out_features

    @property
    def widths(self) -> tuple[int, int]:
        """Channels in and out, (d_in, d_out)."""
        return self.lora_a.in_features, self.lora_b.out_features

    @property
    def scaling(self) -> float:
        """Factor in front of B A."""
        return float(self.layer.scaling[self.adapter])

    @property
    def parameters(self) -> Sequence[Tensor]:
        """A, B, and where they exist B's bias and DoRA's magnitude."""
        parts = (getattr(self.layer, name) for name in _WEIGHTS)
        present = (part[self.adapter] for part in parts if self.adapter in part)
        return [parameter for module in present for parameter in module.parameters()]

    @property
    def reader(self) -> nn.Module | None:
        """A, unless it is switched off; DoRA also gives it an identity matrix."""
        off = self.layer.disable_adapters or self.layer.merged
        used = not off and _variant(self.layer, self.adapter) is None
        return self.lora_a if used and self.adapter in self.layer.active_adapters else None

    def measure(self, note: Note) -> list[RemovableHandle]:
        """‖ΔW x‖₂ / ‖W x‖₂ (Light-PEFT, coarse module importance)."""
        meter = _Contribution(self, note)
        hooks = [self.base_linear.register_forward_hook(meter.note_base)]
        if _variant(self.layer, self.adapter) is None:
            return [*hooks, self.lora_b.register_forward_pre_hook(meter.note_ranks)]
        return [*hooks, self.layer.register_forward_hook(meter.note_output)]

    def constant(self) -> Tensor | None:
        """scaling · B's bias (`lora_bias`)."""
        bias = self.lora_b.bias
        return None if bias is None else bias.detach() * self.scaling

    def row_factors(self) -> Tensor | None:
        """DoRA's magnitude / ‖W + ΔW‖, (d_out,)."""
        return LoraFollower(self.layer).gain(self.adapter)

    def low_rank_pair(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the pair of some ranks, scaling inside: (d_out, k) and (k, d_in), `left @ right = ΔW`."""
        left = self.lora_b.weight.detach()[:, ranks] * self.scaling
        return left.contiguous(), self.lora_a.weight.detach()[ranks].clone()

    def keep_ranks(self, kept: Tensor, journal: Journal) -> None:
        """Keep some ranks; the scaling stays what it was (alpha follows the new rank)."""
        journal.slice_linear(self.lora_a, OUTPUTS, kept)
        journal.slice_linear(self.lora_b, INPUTS, kept)
        journal.set_item(self.layer.r, self.adapter, len(kept))
        rslora = bool(self.layer.use_rslora[self.adapter])
        alpha = self.scaling * (math.sqrt(len(kept)) if rslora else len(kept))
        journal.set_item(self.layer.lora_alpha, self.adapter, alpha)

    def remove(self, base: nn.Module, journal: Journal) -> None:
        """Take the pair off its linear, and PEFT's layer too if no other adapter has a pair there."""
        journal.drop(self.parameters)
        if set(self.layer.lora_A) <= {self.adapter}:
            journal.replace_module(base, self.name, self.base_linear)
            return
        for name in (*_WEIGHTS, *_STATE):
            journal.delete_item(getattr(self.layer, name), self.adapter)


class LoraFollower(Follower):
    """The LoRA pairs of all adapters on one linear."""

    def __init__(self, layer: LoraLayer) -> None:
        self._layer: Any = layer
        self._gains: dict[str, Tensor] = {}
        """Of DoRA, what the rows of W + ΔW are multiplied by: magnitude / ‖W + ΔW‖."""

    @property
    def reads_weights(self) -> bool:
        """DoRA takes the norms of W + ΔW."""
        return bool(self._layer.lora_magnitude_vector)

    @torch.no_grad()
    def prepare(self, kept_ranks: Mapping[str, Tensor]) -> None:
        """Take DoRA's row factors, which a cut has to leave as they are."""
        for adapter, _ in self._magnitudes():
            gain = self.gain(adapter, kept_ranks.get(adapter))
            assert gain is not None
            self._gains[adapter] = gain

    def gain(self, adapter: str, ranks: Tensor | None = None) -> Tensor | None:
        """DoRA's row factors, with some ranks only; None where there is no DoRA."""
        magnitude = dict(self._magnitudes()).get(adapter)
        return None if magnitude is None else _wide(magnitude.detach()) / self._norms(adapter, ranks)

    def keep_inputs(self, kept: Tensor, journal: Journal) -> None:
        """Follow a cut of the linear's inputs."""
        for pair in self._layer.lora_A.values():
            journal.slice_linear(pair, INPUTS, kept)
        journal.set_attribute(self._layer, "in_features", len(kept))

    def keep_outputs(self, kept: Tensor, journal: Journal) -> None:
        """Follow a cut of the linear's outputs."""
        for pair in self._layer.lora_B.values():
            journal.slice_linear(pair, OUTPUTS, kept)
        for _, magnitude in self._magnitudes():
            journal.slice(magnitude, 0, kept)
        self._gains = {name: gain[kept.to(gain.device)] for name, gain in self._gains.items()}
        journal.set_attribute(self._layer, "out_features", len(kept))

    def scale_inputs(self, factors: Tensor, journal: Journal) -> None:
        """Multiply A's columns."""
        for pair in self._layer.lora_A.values():
            journal.assign(pair.weight, pair.weight.data * factors.to(pair.weight))

    @torch.no_grad()
    def finish(self, journal: Journal) -> None:
        """Give DoRA the magnitudes under which its row factors are what they were."""
        for adapter, magnitude in self._magnitudes():
            value = self._gains[adapter] * self._norms(adapter)
            journal.assign(magnitude, value.to(magnitude))

    @torch.no_grad()
    def effect_of(self, adapter: str, inputs: Tensor) -> Tensor | None:
        """ΔW · inputs."""
        if adapter not in self._layer.lora_A:
            return None
        a, b = (_wide(getattr(self._layer, name)[adapter].weight) for name in ("lora_A", "lora_B"))
        delta: Tensor = self._layer.scaling[adapter] * (b @ (a @ inputs.to(a)))
        if adapter not in self._gains:
            return delta
        weight = _wide(matrix(self._layer.get_base_layer()))
        product: Tensor = weight @ inputs.to(weight)
        return self._gains[adapter] * (product + delta) - product

    def left_behind(self, adapter: str) -> Tensor | None:
        """DoRA's row factors."""
        return self._gains.get(adapter)

    def _magnitudes(self) -> Iterator[tuple[str, Tensor]]:
        for adapter, vector in self._layer.lora_magnitude_vector.items():
            yield adapter, vector.weight

    def _norms(self, adapter: str, ranks: Tensor | None = None) -> Tensor:
        """‖W + ΔW‖ per row (d_out,), in float32."""
        a, b = (_wide(getattr(self._layer, name)[adapter].weight) for name in ("lora_A", "lora_B"))
        if ranks is not None:
            a, b = a[ranks], b[:, ranks]
        weight = _wide(matrix(self._layer.get_base_layer()))
        rows: Tensor = torch.linalg.vector_norm(weight + self._layer.scaling[adapter] * (b @ a), dim=1)
        return rows.clamp_min(torch.finfo(torch.float32).tiny)


class _Contribution:
    """‖ΔWx‖ / ‖Wx‖ of one LoRA pair."""

    def __init__(self, module: LoraModule, note: Note) -> None:
        self._module, self._note = module, note
        self._seen: tuple[Tensor, Tensor] | None = None
        """What the linear put out, and ‖Wx‖ per token."""

    @torch.no_grad()
    def note_base(self, linear: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Take ‖Wx‖, without the bias."""
        if linear.training:
            product = output if linear.bias is None else output - linear.bias
            self._seen = output, token_norms(product)

    @torch.no_grad()
    def note_ranks(self, lora_b: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """‖B a‖² = aᵀ(BᵀB)a needs only the ranks a, not a pass over the outputs."""
        if lora_b.training and self._seen is not None:
            ranks = inputs[0].detach().flatten(0, -2).float()
            b = self._module.lora_b.weight.detach().float()
            squared = ((ranks @ (b.T @ b)) * ranks).sum(1).clamp_min(0)
            self._give(self._module.scaling * squared.sqrt())

    @torch.no_grad()
    def note_output(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """DoRA's ΔWx is what the layer puts out beyond its base."""
        if layer.training and self._seen is not None:
            self._give(token_norms(output - self._seen[0]))

    def _give(self, norms: Tensor) -> None:
        assert self._seen is not None
        output, of_base = self._seen
        self._note(share_of(norms, of_base), output)
        self._seen = None


def _wide(tensor: Tensor) -> Tensor:
    """In float32, or in float64 if it is that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _part(pairs: nn.ModuleDict, module: LoraModule) -> nn.Linear:
    part = pairs[module.adapter]
    if not isinstance(part, nn.Linear):
        raise AnatomyError(f"{module.name}: LoRA on a {type(part).__name__} cannot be cut.")
    return part


def _variant(layer: LoraLayer, adapter: str) -> str | None:
    variant = layer.lora_variant.get(adapter)
    return None if variant is None else type(variant).__name__


_UNSUPPORTED = (
    "alora_invocation_tokens",
    "layer_replication",
    "megatron_config",
    "target_parameters",
    "trainable_token_indices",
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


def _problem(config: PeftConfig) -> str | None:
    assert isinstance(config, LoraConfig)
    found = [name for name in _UNSUPPORTED if getattr(config, name, None)]
    if found:
        return f"found LoRA with {', '.join(found)}, which cannot be cut. Leave it out."
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        return (
            f"found LoRA with init_lora_weights={start!r}, which changes the base's weights, so that the "
            "base on disk would no longer serve the checkpoint. Use init_lora_weights=True or 'gaussian'."
        )
    return None


def _find(model: PeftModel, adapter: str) -> tuple[PeftModule, ...]:
    found = []
    _require_separate(model, adapter)
    for name, layer in _layers(model.get_base_model()):
        if adapter not in layer.lora_A:
            continue
        variant = _variant(layer, adapter)
        if variant not in (None, DORA):
            raise AnatomyError(f"{name} carries the LoRA variant {variant}; only LoRA and DoRA can be cut.")
        found.append(LoraModule(name, layer, adapter))
    return tuple(found)


def _require_separate(model: PeftModel, adapter: str) -> None:
    """Refuse what would have to change weights that are tied, or pairs that PEFT ties."""
    base, config = model.get_base_model(), model.peft_config[adapter]
    tied = tied_parameters(base)
    for name, layer in base.named_modules():
        if isinstance(layer, LoraLayer) and id(layer.get_base_layer().weight) in tied:
            is_embedding = isinstance(layer, LoraEmbedding)
            reads_weights = not is_embedding and layer.lora_variant.get(adapter) is not None
            if reads_weights or getattr(config, "ensure_weight_tying", False):
                what = "DoRA" if reads_weights else "LoRA with ensure_weight_tying"
                raise AnatomyError(
                    f"found {what} on {name}, whose weights are tied to another module's, so that it cannot "
                    "be cut by itself. Leave it out of target_modules, or use plain LoRA there."
                )


def _layers(base: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for name, layer in base.named_modules():
        if not isinstance(layer, LoraLayer) or isinstance(layer, LoraEmbedding):
            continue
        inner = layer.get_base_layer()
        if not is_quantised(inner) and not (isinstance(layer, LoraLinear) and is_plain_linear(inner)):
            raise AnatomyError(
                f"{name} carries LoRA on a {type(inner).__name__}; only LoRA on nn.Linear and Conv1D can be "
                "cut, and on an embedding kept whole. Leave it out of target_modules."
            )
        yield name, layer


def _followers(base: PreTrainedModel) -> dict[str, Follower]:
    return {name: LoraFollower(layer) for name, layer in _layers(base)}


def whole_modules(base: nn.Module, adapter: str) -> dict[str, Any]:
    """The LoRA pairs on embeddings by name: they are trained and kept, but neither scored nor cut."""
    return {
        name: layer
        for name, layer in base.named_modules()
        if isinstance(layer, LoraEmbedding) and adapter in layer.lora_embedding_A
    }


def _describe(model: PeftModel, adapter: str, modules: Sequence[PeftModule], journal: Journal) -> None:
    layers = {module.name: module.layer for module in modules}
    layers |= whole_modules(model.get_base_model(), adapter)
    wanted = {
        "target_modules": set(layers),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {re.escape(name): layer.r[adapter] for name, layer in layers.items()},
        "alpha_pattern": {re.escape(name): layer.lora_alpha[adapter] for name, layer in layers.items()},
    }
    for key, value in wanted.items():
        journal.set_attribute(model.peft_config[adapter], key, value)
    others = [name for name, layer in _layers(model.get_base_model()) if name not in layers]
    journal.set_attribute(model.base_model, "targeted_module_names", [*layers, *others])


LORA = Form("LoRA", problem=_problem, find=_find, followers=_followers, describe=_describe)
