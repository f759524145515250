"""Which linears get a bottleneck adapter, and which module's input a parallel one reads, as names."""

import copy
import re
import warnings
from collections.abc import Collection, Sequence

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from torch import nn

from lightpeft.adapters.bottleneck.config import BottleneckConfig
from lightpeft.adapters.bottleneck.layer import BottleneckLayer, linear_to_read
from lightpeft.anatomy import Layer, find_anatomy
from lightpeft.errors import AnatomyError, ConfigError
from lightpeft.linears import is_plain_linear
from lightpeft.wrapping import unwrapped


def complete(config: BottleneckConfig, model: nn.Module) -> None:
    """Write into `config` the full names that follow from it on this model; changes nothing in the model.

    Raises:
        ConfigError: no target can be found, one is not a linear, or the input of a parallel one is unknown.
    """
    if config.target_modules is None:
        config.target_modules = _from_anatomy(config, model)
    if config.target_modules == DUMMY_TARGET_MODULES:
        return
    _expand_all_linear(config, model)
    names = _matching(config, model)
    for name in names:
        _check_linear(model, name)
    if config.form == "parallel" and names:
        config.input_modules = dict(config.input_modules or {}) | _inputs_of(config, model, names)
    if config.size_pattern and names:
        config.size_pattern = _exact_sizes(config.size_pattern, names)


def named_input(input_modules: dict[str, str], target: str) -> str | None:
    """The module whose input the adapter at `target` reads, by the longest matching end of its name."""
    ends = [end for end in input_modules if target == end or target.endswith(f".{end}")]
    if not ends:
        return None
    end = max(ends, key=len)
    return target[: len(target) - len(end)] + input_modules[end]


def _from_anatomy(config: BottleneckConfig, model: nn.Module) -> set[str]:
    units = [getattr(layer, site) for layer in _layers(model) for site in config.sites]
    found = [one.out for one in units if one is not None and one.count]
    names = {name for name in found if _in_chosen_layer(config, name)}
    if not names:
        layers = f" in the layers {config.layers_to_transform}" if found else ""
        raise ConfigError(
            f"found no output projection for sites={config.sites!r}{layers} in {type(model).__name__}; give "
            "other sites or layers, or target_modules."
        )
    return names


def _layers(model: nn.Module) -> tuple[Layer, ...]:
    try:
        return find_anatomy(model).layers
    except AnatomyError as error:
        raise ConfigError(
            f"where the output projections of {type(model).__name__} are is not known: {error} Give "
            "target_modules (and input_modules, for the parallel form)."
        ) from error


def _in_chosen_layer(config: BottleneckConfig, name: str) -> bool:
    """Whether `layers_to_transform` lets a full name pass; peft itself asks only ends of names for it."""
    probe = copy.copy(config)
    probe.target_modules = {name.rpartition(".")[2]}
    probe.exclude_modules = probe.modules_to_save = None
    return bool(check_target_module_exists(probe, name))


def _expand_all_linear(config: BottleneckConfig, model: nn.Module) -> None:
    """peft's `all-linear`, which knows linears under another adapter only if their class is called so."""
    given = config.target_modules
    _maybe_include_all_linear_layers(config, model)
    if isinstance(given, str) and not isinstance(config.target_modules, str):
        adapted = {name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)}
        config.target_modules = {*(config.target_modules or ()), *adapted}


def _matching(config: BottleneckConfig, model: nn.Module) -> list[str]:
    """The modules that peft will hand over for this configuration."""
    modules = list(model.named_modules())
    inside = tuple(f"{name}." for name, module in modules if isinstance(module, BaseTunerLayer))
    return [
        name
        for name, _ in modules
        if name and not name.startswith(inside) and check_target_module_exists(config, name)
    ]


def _check_linear(model: nn.Module, name: str) -> None:
    module = model.get_submodule(name)
    inner = unwrapped(module)
    if not is_plain_linear(inner):
        raise ConfigError(
            f"target_modules matches {name}, a {type(inner).__name__}; bottleneck adapters sit on nn.Linear "
            "and Conv1D only. Name only such modules, or leave this one out by exclude_modules."
        )


def _inputs_of(config: BottleneckConfig, model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Full name of a target -> full name of the module whose input it reads."""
    given = config.input_modules or {}
    inputs = {name: source for name in names if (source := named_input(given, name)) is not None}
    if len(inputs) < len(names):
        known = _anatomy_inputs(model)
        inputs = {name: known[name] for name in names if name in known} | inputs
    modules = dict(model.named_modules())
    for name in names:
        if name not in inputs:
            raise ConfigError(
                f"which input a parallel adapter at {name} reads is not known; name it in input_modules, "
                'such as {"output.dense": "intermediate.dense"}.'
            )
        if inputs[name] not in modules:
            raise ConfigError(
                f"the parallel adapter at {name} would read the input of {inputs[name]}, which does not "
                f"exist; input_modules is {given}: name the ends of existing modules."
            )
        linear_to_read(modules[inputs[name]], inputs[name])
        layer = modules[name]
        if isinstance(layer, BottleneckLayer):
            layer.check_free_for(inputs[name])
    return inputs


def _anatomy_inputs(model: nn.Module) -> dict[str, str]:
    """Full name of each output projection -> a linear that reads the input of its block, and only that."""
    inputs = {}
    above = None
    for layer in _layers(model):
        # Self-attention: DeBERTa calls a shared query or key linear on positions too. Cross-attention, which
        # follows its own layer: values come from the encoder.
        roles = ("query", "fused", "input") if layer.module == above else ("value", "fused", "input")
        above = layer.module
        for units in layer.units:
            source = next((row.name for row in units.rows if row.role in roles), None)
            if source is not None:
                inputs[units.out] = source
    return inputs


def _exact_sizes(pattern: dict[str, int], names: Collection[str]) -> dict[str, int]:
    """The same sizes by full names: saving sorts the keys, which would change which match is first."""
    keys = {name: get_pattern_key(list(pattern), name) for name in names}
    unused = sorted(pattern.keys() - set(keys.values()))
    if unused:
        warnings.warn(
            f"these keys of size_pattern matched no adapted module, or only after another key: {unused}.",
            RuntimeWarning,
            stacklevel=2,
        )
    return {re.escape(name): pattern[key] for name, key in keys.items() if key in pattern}
