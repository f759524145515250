"""Bottleneck adapters as prunable PEFT modules: their ranks are the neurons behind the non-linearity."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lightpeft.adapters.bottleneck.layer import BottleneckLayer
from lightpeft.adapters.view import Follower, Form, Note, PeftModule, share_of, token_norms
from lightpeft.edits import Journal
from lightpeft.errors import AnatomyError
from lightpeft.linears import INPUTS, OUTPUTS

_STATE = ("bottleneck_norm", "bottleneck_down", "bottleneck_up", *BottleneckLayer.other_param_names)


@dataclass(frozen=True)
class BottleneckModule(PeftModule):
    """One bottleneck on one output projection: `scaling · up(act(down(h)))`, up (d_out, size)."""

    @property
    def down(self) -> nn.Linear:
        """Weight (size, d_in), bias (size,)."""
        part = self.layer.bottleneck_down[self.adapter]
        assert isinstance(part, nn.Linear)
        return part

    @property
    def up(self) -> nn.Linear:
        """Weight (d_out, size), bias (d_out,). Its input's channels are the neurons."""
        part = self.layer.bottleneck_up[self.adapter]
        assert isinstance(part, nn.Linear)
        return part

    @property
    def gated(self) -> str:
        """The up projection."""
        return f"{self.name}.bottleneck_up.{self.adapter}"

    @property
    def rank(self) -> int:
        """Neurons."""
        return self.up.in_features

    @property
    def widths(self) -> tuple[int, int]:
        """Channels in and out, (d_in, d_out)."""
        return self.down.in_features, self.up.out_features

    @property
    def scaling(self) -> float:
        """Factor in front of the adapter's output."""
        return float(self.layer.scaling[self.adapter])

    @property
    def is_linear(self) -> bool:
        """It has a non-linearity."""
        return False

    @property
    def parameters(self) -> Sequence[Tensor]:
        """Norm, down and up."""
        parts = (self.layer.bottleneck_norm[self.adapter], self.down, self.up)
        return [parameter for part in parts for parameter in part.parameters()]

    def measure(self, note: Note) -> list[RemovableHandle]:
        """‖adapter(h)‖₂ / ‖h‖₂ (Light-PEFT, coarse module importance)."""
        meter = _Contribution(self.scaling, note)
        norm = self.layer.bottleneck_norm[self.adapter]
        return [
            norm.register_forward_pre_hook(meter.note_input),
            self.up.register_forward_hook(meter.note_output),
        ]

    def constant(self) -> Tensor:
        """scaling · the up projection's bias."""
        return self.up.bias.detach() * self.scaling

    def mean_output(self, means: Tensor, ranks: Tensor) -> Tensor:
        """scaling · up[:, ranks] · means[ranks]."""
        columns = self.up.weight.detach().float()[:, ranks]
        return self.scaling * (columns @ means.to(columns)[ranks])

    def add_to_constant(self, shift: Tensor, journal: Journal) -> None:
        """Add to the up projection's bias."""
        bias = self.up.bias
        journal.assign(bias, bias.data + (shift / self.scaling).to(bias))

    def keep_ranks(self, kept: Tensor, journal: Journal) -> None:
        """Keep some neurons: rows of down, columns of up."""
        journal.slice_linear(self.down, OUTPUTS, kept)
        journal.slice_linear(self.up, INPUTS, kept)
        journal.set_item(self.layer.bottleneck_size, self.adapter, len(kept))

    def remove(self, base: nn.Module, journal: Journal) -> None:
        """Take the bottleneck off, and PEFT's layer too if no other adapter has one there."""
        journal.drop(self.parameters)
        if set(self.layer.bottleneck_up) <= {self.adapter}:
            self._disconnect(base, journal)
            journal.replace_module(base, self.name, self.base_linear)
            return
        for name in _STATE:
            journal.delete_item(getattr(self.layer, name), self.adapter)

    def _disconnect(self, base: nn.Module, journal: Journal) -> None:
        """Stop a parallel adapter's layer from reading the block's input."""
        name = self.layer.input_name
        if name is not None:
            source = base.get_submodule(name)
            self.layer.disconnect()
            journal.note_undo(lambda: self.layer.connect(source, name))


class BottleneckFollower(Follower):
    """The bottlenecks on one linear: they read and write the model's width, which no cut changes."""

    fixed_outputs = (
        "a bottleneck mixes all outputs of its linear. Put bottlenecks on output projections (leave "
        "target_modules out)"
    )

    def __init__(self, layer: BottleneckLayer) -> None:
        self._layer: Any = layer

    def keep_inputs(self, kept: Tensor, journal: Journal) -> None:
        """Only the layer's record of the linear's width changes."""
        journal.set_attribute(self._layer, "in_features", len(kept))

    def keep_outputs(self, kept: Tensor, journal: Journal) -> None:
        """Not possible, see `fixed_outputs`.

        Raises:
            AnatomyError: always. Output projections, where bottlenecks belong, are never cut there.
        """
        raise AnatomyError(f"{self._layer.name}: {self.fixed_outputs}.")


class _Contribution:
    """‖adapter(h)‖ / ‖h‖ of one bottleneck."""

    def __init__(self, scaling: float, note: Note) -> None:
        self._scaling, self._note = scaling, note
        self._norms: Tensor | None = None

    @torch.no_grad()
    def note_input(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keep ‖h‖ per token."""
        if norm.training:
            self._norms = token_norms(inputs[0])

    @torch.no_grad()
    def note_output(self, up: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Give the ratio."""
        if up.training and self._norms is not None:
            self._note(share_of(abs(self._scaling) * token_norms(output), self._norms), output)
            self._norms = None


def _find(model: PeftModel, adapter: str) -> tuple[PeftModule, ...]:
    return tuple(
        BottleneckModule(name, layer, adapter)
        for name, layer in model.get_base_model().named_modules()
        if isinstance(layer, BottleneckLayer) and adapter in layer.bottleneck_up
    )


def _followers(base: PreTrainedModel) -> dict[str, Follower]:
    return {
        name: BottleneckFollower(layer)
        for name, layer in base.named_modules()
        if isinstance(layer, BottleneckLayer)
    }


def _describe(model: PeftModel, adapter: str, modules: Sequence[PeftModule], journal: Journal) -> None:
    wanted = {
        "target_modules": {module.name for module in modules},
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "size_pattern": {re.escape(module.name): module.rank for module in modules},
    }
    for key, value in wanted.items():
        journal.set_attribute(model.peft_config[adapter], key, value)
    journal.set_attribute(model.base_model, "targeted_module_names", [module.name for module in modules])


BOTTLENECK = Form("bottleneck", merges=False, find=_find, followers=_followers, describe=_describe)
