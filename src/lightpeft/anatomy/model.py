"""Find the units of a model: which linears hold heads and neurons, and what each of them costs."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from lightpeft.anatomy.families import FAMILIES, Family
from lightpeft.errors import AnatomyError


@dataclass(frozen=True)
class AttentionSite:
    """One attention block. All names are relative to the base model."""

    module: str
    """Module that carries the head count."""

    query: str
    key: str
    value: str
    out: str
    heads: int
    head_size: int
    head_count: str
    head_width: str | None


@dataclass(frozen=True)
class FFNSite:
    """One feed-forward block. All names are relative to the base model."""

    inputs: tuple[str, ...]
    out: str
    neurons: int


@dataclass(frozen=True)
class Layer:
    """One encoder layer: its two sites and what their units cost in parameters."""

    index: int
    attention: AttentionSite
    ffn: FFNSite
    head_parameters: int
    neuron_parameters: int
    fixed_parameters: int
    """Parameters of the layer that no cut touches (norms, output biases)."""

    def parameters(self, heads: int, neurons: int) -> int:
        """Parameters of this layer with so many heads and neurons."""
        return self.fixed_parameters + heads * self.head_parameters + neurons * self.neuron_parameters

    @property
    def outputs(self) -> tuple[str, str]:
        """The output projections, whose inputs are the units."""
        return self.attention.out, self.ffn.out


@dataclass(frozen=True)
class Anatomy:
    """Where the units of a model live."""

    model_type: str
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Parameters of all encoder layers (embeddings and heads on top are not counted)."""
        return sum(layer.parameters(layer.attention.heads, layer.ffn.neurons) for layer in self.layers)

    def height_of(self, linear: str) -> float:
        """How high in the stack a linear sits: (layer + 1) / layers, and 1 for what is on top of them."""
        for layer in self.layers:
            site = layer.attention
            if linear in (site.query, site.key, site.value, site.out, *layer.ffn.inputs, layer.ffn.out):
                return (layer.index + 1) / len(self.layers)
        return 1.0

    def describe(self) -> str:
        """One line per layer: what can be cut."""
        lines = [f"{self.model_type}: {len(self.layers)} layers, {self.parameters:,} parameters"]
        lines += [
            f"  layer {layer.index}: {layer.attention.heads} heads of {layer.attention.head_size}, "
            f"{layer.ffn.neurons} FFN neurons"
            for layer in self.layers
        ]
        return "\n".join(lines)


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, which may be a `PeftModel` around it."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise AnatomyError(
            f"expected a transformers model or a PeftModel around one, found {type(inner).__name__}."
        )
    return inner


def linear_at(base: nn.Module, name: str) -> nn.Linear:
    """The base linear at `name`, seen through PEFT's wrapper if there is one."""
    module = base.get_submodule(name)
    inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if not is_plain_linear(inner):
        raise AnatomyError(
            f"{name} is a {type(inner).__name__}; only a plain torch.nn.Linear "
            "with floating point weights can be cut (cut before quantising)."
        )
    assert isinstance(inner, nn.Linear)
    return inner


def is_plain_linear(module: nn.Module) -> bool:
    """Whether `module` is a torch.nn.Linear itself, not a quantised or otherwise derived one."""
    return type(module) is nn.Linear and module.weight.dtype.is_floating_point


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find heads and FFN neurons of `model` (plain or wrapped by PEFT, whole or already cut).

    Raises:
        AnatomyError: unknown architecture, or a layer that does not look as its family says.
    """
    base = base_of(model)
    family = _family_of(base)
    encoder = base.base_model
    prefix = "" if encoder is base else f"{base.base_model_prefix}."
    layers = encoder.get_submodule(family.layers)
    if not isinstance(layers, nn.ModuleList):
        raise AnatomyError(f"{prefix}{family.layers} is a {type(layers).__name__}, not a list.")
    return Anatomy(
        model_type=base.config.model_type,
        layers=tuple(
            _find_layer(base, family, index, f"{prefix}{family.layers}.{index}.")
            for index in range(len(layers))
        ),
    )


def layer_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each encoder layer, lowest first."""
    base = base_of(model)
    layers = base.base_model.get_submodule(_family_of(base).layers)
    for index, layer in enumerate(layers.children()):
        yield f"layer {index}", layer


def _family_of(base: PreTrainedModel) -> Family:
    model_type = base.config.model_type
    if model_type not in FAMILIES:
        close = difflib.get_close_matches(model_type, FAMILIES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise AnatomyError(
            f"lightpeft does not know the architecture {model_type!r}.{hint} "
            f"Known: {', '.join(FAMILIES)}. Adding one is a row in lightpeft/anatomy/families.py."
        )
    return FAMILIES[model_type]


def _find_layer(base: PreTrainedModel, family: Family, index: int, prefix: str) -> Layer:
    site = _find_attention(base, family, prefix)
    inputs = tuple(prefix + name for name in family.ffn_in)
    ffn_out = linear_at(base, prefix + family.ffn_out)
    ffn = FFNSite(inputs=inputs, out=prefix + family.ffn_out, neurons=ffn_out.in_features)
    for name in inputs:
        if linear_at(base, name).out_features != ffn.neurons:
            raise AnatomyError(f"{name} has not as many outputs as {ffn.out} has inputs.")
    projections = [linear_at(base, name) for name in (site.query, site.key, site.value)]
    attention_out = linear_at(base, site.out)
    head_parameters = site.head_size * (
        sum(_row_parameters(linear) for linear in projections) + attention_out.out_features
    )
    neuron_parameters = sum(_row_parameters(linear_at(base, name)) for name in inputs) + ffn_out.out_features
    total = _base_parameters(base.get_submodule(prefix.rstrip(".")))
    return Layer(
        index=index,
        attention=site,
        ffn=ffn,
        head_parameters=head_parameters,
        neuron_parameters=neuron_parameters,
        fixed_parameters=total - site.heads * head_parameters - ffn.neurons * neuron_parameters,
    )


def _find_attention(base: PreTrainedModel, family: Family, prefix: str) -> AttentionSite:
    module = base.get_submodule(prefix + family.attention)
    heads, head_size = getattr(module, family.head_count), getattr(module, family.head_size)
    site = AttentionSite(
        module=prefix + family.attention,
        query=prefix + family.query,
        key=prefix + family.key,
        value=prefix + family.value,
        out=prefix + family.attention_out,
        heads=heads,
        head_size=head_size,
        head_count=family.head_count,
        head_width=family.head_width,
    )
    widths = {name: linear_at(base, name).out_features for name in (site.query, site.key, site.value)}
    widths[site.out] = linear_at(base, site.out).in_features
    for name, width in widths.items():
        if width != heads * head_size:
            raise AnatomyError(
                f"{name} is {width} wide, but {site.module} says {heads} heads of {head_size}."
            )
    return site


def _row_parameters(linear: nn.Linear) -> int:
    return linear.in_features + (linear.bias is not None)


def _base_parameters(layer: nn.Module) -> int:
    """Parameters of a layer without what PEFT added to it."""
    added = {
        id(parameter)
        for module in layer.modules()
        if isinstance(module, BaseTunerLayer)
        for name in module.adapter_layer_names
        if isinstance(getattr(module, name, None), nn.Module)
        for parameter in getattr(module, name).parameters()
    }
    return sum(p.numel() for p in layer.parameters() if id(p) not in added)
