"""Which trained parameter belongs to which layer: ordered groups, lowest first, the output layer last."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from peft import PeftModel
from torch import nn

from lightpeft.adapters import active_adapter, type_name
from lightpeft.anatomy import base_of, layer_modules
from lightpeft.audit.errors import AuditError


@dataclass(frozen=True)
class LayerGroup:
    """The trained parameters of one layer."""

    number: int
    """0 is the lowest encoder layer; the output layer has the number N of encoder layers."""

    title: str
    """In words, such as `layer 3` or `output layer`."""

    parameters: Mapping[str, nn.Parameter]
    """By their names in the model."""

    @property
    def size(self) -> int:
        """Numbers in all of them, the length of the layer's gradient."""
        return sum(parameter.numel() for parameter in self.parameters.values())


@dataclass(frozen=True)
class LayerMap:
    """All trained parameters of a model by layer; layers without any are left out."""

    depth: int
    """N, the number of encoder layers, and the number of the output layer (l_o)."""

    groups: tuple[LayerGroup, ...]
    """Lowest first, output layer last."""

    single: str | None = None
    """Why there is only one encoder layer to speak of."""

    @cached_property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """All of them, in the order of the groups."""
        return tuple(p for group in self.groups for p in group.parameters.values())

    def is_lower(self, group: LayerGroup) -> bool:
        """Whether a layer is in the lower half: l < N/2. With a single layer there are no halves."""
        return self.single is None and group.number < self.depth / 2


def map_layers(model: nn.Module) -> LayerMap:
    """Map every trained parameter of a model, with or without PEFT, to its layer.

    Layers are numbered by the anatomy, those of several stacks (encoder, decoder) one after the other; a
    layer whose weights serve several times is one. The paper has parameters in layers and on top only, so the
    rest is decided here. What is outside the layers but in the encoder (a LoRA on the embeddings, a norm
    between two stacks) belongs to the layer that the model registers before it, and what comes before all
    layers to the lowest. What comes after all layers (pooler, last norm) or is on top of the encoder (the
    head, which PEFT trains through `modules_to_save`) is the output layer.

    A prompt is one layer: prompt tuning and P-tuning feed it in below all others, and of prefix tuning PEFT
    keeps the prefixes of all layers in one tensor.

    Raises:
        AuditError: nothing is trained.
        AnatomyError: unknown architecture, or no or several active adapters.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise AuditError(
            "no parameter of the model is trained; load the module with is_trainable=True, or put one on."
        )
    titles = [title for title, _ in layer_modules(model)]
    numbers = dict(_numbered(model))
    single = None
    if isinstance(model, PeftModel) and model.peft_config[active_adapter(model)].is_prompt_learning:
        kind = type_name(model.peft_config[active_adapter(model)])
        single = f"{kind} is one layer for the whole model"
        numbers = {key: int(number == len(titles)) for key, number in numbers.items()}
        numbers |= {id(p): 0 for p in model.prompt_encoder.parameters()}
        titles = ["prompt"]
    found: dict[int, dict[str, nn.Parameter]] = {}
    for name, parameter in trained.items():
        if id(parameter) not in numbers:
            raise AuditError(f"{name} is trained, but is in no layer that is known; freeze it.")
        found.setdefault(numbers[id(parameter)], {})[name] = parameter
    named = [*titles, "output layer"]
    groups = tuple(LayerGroup(number, named[number], found[number]) for number in sorted(found))
    return LayerMap(len(titles), groups, single)


def _numbered(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Identity and layer number of every parameter of the base and of what PEFT put into it."""
    base = base_of(model)
    layers = [list(module.parameters()) for _, module in layer_modules(model)]
    inside = {id(p): number for number, parameters in enumerate(layers) for p in parameters}
    encoder = {id(p) for p in base.base_model.parameters()}
    before: int | None = None
    for parameter in base.parameters():
        key = id(parameter)
        if key in inside:
            before = inside[key]
            yield key, before
        elif key not in encoder or before == len(layers) - 1:
            yield key, len(layers)
        else:
            yield key, before or 0
