"""The words in which an architecture is described: stacks of layers, attention, FFN, and layouts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from lightpeft.anatomy.units import HeadInput, Rows
from lightpeft.errors import AnatomyError
from lightpeft.linears import INPUTS, OUTPUTS, Projection, is_plain_linear, is_quantised, width
from lightpeft.wrapping import unwrapped


class AttentionView:
    """One attention module while its rows are looked for. Names are relative to it."""

    def __init__(self, base: PreTrainedModel, module: str, heads: int, head_size: int) -> None:
        self.base, self.module, self.heads, self.head_size = base, module, heads, head_size
        self.attention: nn.Module = base.get_submodule(module)

    def has(self, name: str) -> bool:
        """Whether there is such a module or parameter."""
        return getattr(self.attention, name, None) is not None

    def width(self, name: str) -> int:
        """Output channels of a linear."""
        return width(linear_at(self.base, f"{self.module}.{name}"), OUTPUTS)

    def rows(self, name: str, role: str, start: int = 0, stop: int | None = None) -> Rows:
        """The channels `start` to `stop` of a linear, in equal parts per head or, if fewer, KV head."""
        linear = linear_at(self.base, f"{self.module}.{name}")
        channels = (width(linear, OUTPUTS) if stop is None else stop) - start
        owners = self.heads if channels >= self.heads * self.head_size else channels // self.head_size
        if owners == 0 or channels % owners or self.heads % owners:
            raise AnatomyError(
                f"{self.module}.{name}: {channels} channels do not divide among {self.heads} heads of "
                f"{self.head_size}."
            )
        return Rows(
            f"{self.module}.{name}",
            role,
            start,
            channels // owners,
            self.heads // owners,
            row_parameters(linear),
        )

    def vector(self, name: str) -> Rows:
        """A parameter with one entry per channel of the heads."""
        return Rows(f"{self.module}.{name}", "vector", 0, self.head_size, 1, 1)


Layout = Callable[[AttentionView], tuple[Rows, ...]]


def separate(query: str, key: str, value: str, *, position: tuple[str, ...] = ()) -> Layout:
    """A linear each for query, key and value (KV heads may be fewer), and position ones where they exist."""

    def layout(view: AttentionView) -> tuple[Rows, ...]:
        named = [(query, "query"), (key, "key"), (value, "value")]
        named += [(name, "position") for name in position if view.has(name)]
        return tuple(view.rows(name, role) for name, role in named)

    return layout


def blocks(name: str) -> Layout:
    """One linear: all queries, then all keys, then all values."""

    def layout(view: AttentionView) -> tuple[Rows, ...]:
        queries = view.heads * view.head_size
        keys = (view.width(name) - queries) // 2
        return (
            view.rows(name, "fused", 0, queries),
            view.rows(name, "fused", queries, queries + keys),
            view.rows(name, "fused", queries + keys, queries + 2 * keys),
        )

    return layout


def interleaved(name: str, *, position: tuple[str, ...] = (), vectors: tuple[str, ...] = ()) -> Layout:
    """One linear in which every head has its query, key and value side by side."""

    def layout(view: AttentionView) -> tuple[Rows, ...]:
        more = [view.rows(one, "position") for one in position if view.has(one)]
        return (view.rows(name, "fused"), *more, *(view.vector(one) for one in vectors))

    return layout


@dataclass(frozen=True)
class Attention:
    """An attention block."""

    module: str
    """The module that reshapes to heads, relative to the layer."""

    out: str
    """Its output projection, relative to the layer."""

    layout: Layout
    """Which rows of which linears are whose; names relative to `module`."""

    head_size: str = "head_dim"
    """Attribute of `module`: width of one head."""

    follow: dict[str, str] = field(default_factory=dict)
    """Attributes of `module` (`config.x`: of its own copy of the configuration) that must say the number of
    `heads`, the `width` of all heads, KV `groups`, or the heads per `group`; those that exist."""

    head_inputs: tuple[HeadInput, ...] = ()
    """Arguments of `module` with one value per head."""

    fixed_if: tuple[str, str] | None = None
    """Attribute of `module` that, if true, forbids a cut; and why."""

    returns: int | None = 2
    """Length of the tuple that `module` returns, so that a skip can take its place; None: no skip."""


@dataclass(frozen=True)
class FFN:
    """A feed-forward block. Names are relative to the layer."""

    inputs: tuple[str, ...]
    """Linears whose outputs are neurons, two for a gated FFN; those that exist."""

    out: str
    fused: int = 1
    """How many times the neurons stand in each input linear, one after the other."""


@dataclass(frozen=True)
class Sibling:
    """Another architecture that computes the same, and takes numbers of heads that this one refuses."""

    model_type: str
    settings: Mapping[str, object] = field(default_factory=dict)
    """What its configuration has to say for that."""


@dataclass(frozen=True)
class Stock:
    """How the configuration says what every layer of a stack has, so that an evenly cut model is an ordinary
    one. A key `a.b` is one of the nested configuration `a`."""

    neurons: str | None = "intermediate_size"
    """Key of the number of neurons."""

    heads: Mapping[str, str] = field(default_factory=dict)
    """Keys that say the number of `heads`, KV `groups` and the `size` of a head; none where it derives that
    size from their number."""

    layers: str | None = "num_hidden_layers"
    """Key of the number of layers."""

    lists: tuple[str, ...] = ("layer_types",)
    """Keys of lists with one entry per layer; those that exist."""

    derived: tuple[str, ...] = ()
    """Keys that the configuration makes anew from its number of layers."""

    attention_bias: str | None = None
    """Option that gives the attention's output projection a bias, where it has none by itself."""

    ffn_bias: str | None = None
    """The same for the FFN's second linear."""

    divides: str | None = None
    """Key of a width that the number of heads has to divide."""

    sibling: Sibling | None = None
    """What a model is written as whose number of heads does not."""

    numbered: Mapping[str, object] = field(default_factory=dict)
    """Options under which the number of a layer decides what it computes, unless they say this."""

    first: str | None = None
    """Why no other layer can take the first one's place."""


@dataclass(frozen=True)
class Stack:
    """Layers that are alike."""

    layers: str
    """The list of layers, relative to `model.base_model`; `*` stands for every entry of a list."""

    attention: Attention
    ffn: FFN | None
    cross: Attention | None = None
    title: str = "layer"
    note: str | None = None
    """What cannot be cut, in words."""

    stays: str | None = None
    """Why none of these layers can be skipped."""

    stock: Stock | None = None
    """How the configuration says what is in them; None where nobody looked."""


def linear_at(base: nn.Module, name: str) -> Projection:
    """The base linear at `name`, seen through PEFT's wrapper if there is one.

    Raises:
        AnatomyError: there is none.
    """
    try:
        module = base.get_submodule(name)
    except AttributeError as error:
        raise AnatomyError(f"there is no {name} in {type(base).__name__}: {error}.") from error
    inner = unwrapped(module)
    if not is_plain_linear(inner) and not is_quantised(inner):
        raise AnatomyError(
            f"{name} is a {type(inner).__name__}; only a plain torch.nn.Linear, or one that transformers "
            "quantised, can be cut."
        )
    return inner


def row_parameters(linear: Projection) -> int:
    """Parameters of one output channel."""
    return width(linear, INPUTS) + (linear.bias is not None)
