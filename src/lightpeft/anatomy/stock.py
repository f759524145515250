"""An evenly cut model as an ordinary one: what its configuration can say, and the configuration that does."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from lightpeft.anatomy.rows import Sibling, Stack, Stock
from lightpeft.anatomy.units import Kind, Units
from lightpeft.errors import AnatomyError

UNKNOWN = "lightpeft does not know how the configuration of this architecture says what is in every layer"
_HEADS_DERIVED = "the configuration derives the size of a head from their number"
_NO_WIDTH = "the configuration has no key for the width of the FFN"
_NO_COUNT = "the configuration counts layers in another way (runs of shared ones, repeats of a pattern)"


def sayable(stock: Stock | None, config: PreTrainedConfig, units: Units) -> Units:
    """The same with what the configuration can say of them."""
    if stock is None:
        return dataclasses.replace(units, unsaid=UNKNOWN)
    if units.kind == "neurons":
        keys = () if stock.neurons is None else ((stock.neurons, "neurons"),)
        return dataclasses.replace(units, keys=keys, unsaid=None if keys else _NO_WIDTH)
    if not stock.heads:
        return dataclasses.replace(units, unsaid=_HEADS_DERIVED)
    bound = stock.divides is not None and _sibling(stock, config) is None
    return dataclasses.replace(
        units,
        keys=tuple(stock.heads.items()),
        divides=getattr(config, stock.divides) if bound and stock.divides else None,
    )


def why_not_left_out(stock: Stock | None, config: PreTrainedConfig, number: int) -> str | None:
    """Why a configuration cannot do without a layer."""
    if stock is None:
        return UNKNOWN
    if stock.layers is None:
        return _NO_COUNT
    if number == 0 and stock.first is not None:
        return stock.first
    for key, harmless in stock.numbered.items():
        if getattr(config, key, harmless) not in (harmless, None):
            return f"with {key} what a layer computes depends on its number"
    return None


def gives_bias(stock: Stock | None, config: PreTrainedConfig, kind: Kind, heads: int) -> bool:
    """Whether the configuration of a model with so many heads can give these output projections a bias."""
    if stock is None or _needs_sibling(stock, config, heads):
        return False
    return (stock.attention_bias if kind == "heads" else stock.ffn_bias) is not None


@dataclasses.dataclass(frozen=True)
class Said:
    """What the configuration of an evenly cut model says."""

    counts: Mapping[str, int]
    """Keys and their values, of heads and neurons that were cut."""

    layers: Mapping[str, Sequence[int]]
    """Per title of a stack that lost layers: the numbers of those that stay."""

    biased: frozenset[tuple[str, str]]
    """Title of a stack and kind of units whose output projections have biases."""


def stock_config(base: PreTrainedModel, stacks: Sequence[Stack], said: Said) -> PreTrainedConfig:
    """The configuration of an ordinary model of these counts.

    Raises:
        AnatomyError: there is none.
    """
    values: dict[str, Any] = base.config.to_dict()
    for key, count in said.counts.items():
        _put(values, key, count)
    sibling = None
    for stack in stacks:
        stock = stack.stock
        if stock is None:
            raise AnatomyError(f"{UNKNOWN}.")
        if stack.title in said.layers:
            _shorten(values, stock, said.layers[stack.title])
        for kind, option in (("heads", stock.attention_bias), ("neurons", stock.ffn_bias)):
            if (stack.title, kind) in said.biased and option is not None:
                _put(values, option, True)
        heads = next((said.counts.get(key, 0) for key, what in stock.heads.items() if what == "heads"), 0)
        if _needs_sibling(stock, base.config, heads):
            sibling = _sibling(stock, base.config)
    try:
        if sibling is not None:
            return _as_sibling(sibling, values)
        found: PreTrainedConfig = type(base.config).from_dict(values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        said_why = " ".join(str(error).split())
        raise AnatomyError(f"{type(base.config).__name__} does not take these counts: {said_why}") from error
    return found


def _needs_sibling(stock: Stock, config: PreTrainedConfig, heads: int) -> bool:
    return stock.divides is not None and heads > 0 and getattr(config, stock.divides) % heads != 0


def _sibling(stock: Stock, config: PreTrainedConfig) -> Sibling | None:
    """The model type that takes every number of heads, where this model has nothing that it lacks."""
    biased = any(
        getattr(config, option, False) for option in (stock.attention_bias, stock.ffn_bias) if option
    )
    return None if biased else stock.sibling


def _as_sibling(sibling: Sibling, values: Mapping[str, Any]) -> PreTrainedConfig:
    own = CONFIG_MAPPING[sibling.model_type]
    names = set(own().to_dict()) - {"model_type", "architectures", "transformers_version"}
    kept = {name: value for name, value in values.items() if name in names}
    found: PreTrainedConfig = own.from_dict(kept | dict(sibling.settings))
    return found


def _shorten(values: dict[str, Any], stock: Stock, kept: Sequence[int]) -> None:
    if stock.layers is None:
        raise AnatomyError(f"{_NO_COUNT}.")
    _put(values, stock.layers, len(kept))
    for name in stock.derived:
        values.pop(name, None)
    for name in stock.lists:
        entries = _at(values, name)
        if isinstance(entries, list):
            _put(values, name, [entries[number] for number in kept])


def _owner(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *parents, last = key.split(".")
    for parent in parents:
        values = values[parent]
    return values, last


def _put(values: dict[str, Any], key: str, value: object) -> None:
    owner, name = _owner(values, key)
    owner[name] = value


def _at(values: dict[str, Any], key: str) -> Any:
    owner, name = _owner(values, key)
    return owner.get(name)
