"""What PEFT put around a base: the parameters that it added, and names as they were before.

peft is imported where it is needed: importing it imports lightpeft's tuner too, which needs this module.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lightpeft.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftModel

_COPIES = ".modules_to_save."
_ORIGINALS = ".original_module"
_INNER = ".base_layer"


def require_peft_model(model: nn.Module) -> "PeftModel":
    """The model itself, if it is a PeftModel.

    Raises:
        ConfigError: it is not; says where a PeftModel was found, or PEFT's layers without one.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, PeftModel):
        return model
    kind = type(model).__name__
    for name, module in model.named_modules():
        if isinstance(module, PeftModel):
            raise ConfigError(
                f"the model is a {kind} with a PeftModel at {name!r} in it; give that one. (A Trainer may "
                f"have the whole {kind}: with lightpeft's callback, not as a LightTrainer.)"
            )
        if isinstance(module, BaseTunerLayer):
            raise ConfigError(
                f"the model is a {kind} with PEFT's layers in it ({name} first), but it is no PeftModel "
                "(add_adapter makes it so); put the adapter on by peft.get_peft_model(model, config) instead."
            )
    raise ConfigError(
        f"the model is a {kind} without PEFT; wrap it with peft.get_peft_model(model, LoraConfig(...)) first."
    )


def peft_model_in(model: nn.Module) -> "PeftModel":
    """The PeftModel in training: the model itself, or the only one inside it, as in a SentenceTransformer.

    Raises:
        ConfigError: there is none, or more than one.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        return model
    found = {name: module for name, module in model.named_modules() if isinstance(module, PeftModel)}
    if not found:
        return require_peft_model(model)
    if len(found) > 1:
        raise ConfigError(
            f"the model is a {type(model).__name__} with {len(found)} PeftModels in it "
            f"({', '.join(found)}); lightpeft cuts one. Put PEFT on one of them only."
        )
    return next(iter(found.values()))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that a tuner layer is around, or `module` itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def added_parameters(module: nn.Module, adapter: str | None = None) -> Iterator[nn.Parameter]:
    """Parameters of the tuner layers inside `module`: of one adapter, by default of all."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            for name in layer.adapter_layer_names:
                yield from _parameters(getattr(layer, name, None), adapter)


def base_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The base's own parameters by their names without PEFT.

    Of a module that PEFT copied to train it (`modules_to_save`), the original counts.
    """
    added = {id(parameter) for parameter in added_parameters(module)}
    return {
        name_without_peft(name): parameter
        for name, parameter in module.named_parameters()
        if id(parameter) not in added and _COPIES not in f".{name}"
    }


def tied_parameters(module: nn.Module) -> set[int]:
    """The ids of parameters that several modules use, as a head that is tied to an embedding."""
    uses = Counter(id(p) for one in module.modules() for p in one._parameters.values() if p is not None)
    return {key for key, count in uses.items() if count > 1}


def base_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The base's own buffers by their names without PEFT."""
    own = ((name, buffer) for name, buffer in module.named_buffers() if _COPIES not in f".{name}")
    return {name_without_peft(name): buffer for name, buffer in own}


def copied_parameters(module: nn.Module) -> frozenset[str]:
    """Names, without PEFT, of the base's parameters that PEFT trains and saves a copy of (`modules_to_save`).

    Not those that something else still uses, as a head that is tied to an embedding.
    """
    tied = tied_parameters(module)
    return frozenset(
        name_without_peft(name)
        for name, parameter in module.named_parameters()
        if _ORIGINALS in f".{name}" and id(parameter) not in tied
    )


def name_without_peft(name: str) -> str:
    """The name of a base's module or tensor as it was before PEFT."""
    return name.replace(_INNER, "").replace(_ORIGINALS, "")


def _parameters(entries: object, adapter: str | None) -> Iterator[nn.Parameter]:
    if isinstance(entries, nn.ModuleDict | nn.ParameterDict):
        named: Mapping[str, object] = dict(entries.items())
        for name, entry in named.items():
            if adapter in (None, name):
                yield from [entry] if isinstance(entry, nn.Parameter) else _of(entry)


def _of(entry: object) -> Iterator[nn.Parameter]:
    return entry.parameters() if isinstance(entry, nn.Module) else iter(())
