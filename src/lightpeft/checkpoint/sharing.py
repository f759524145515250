"""A base in memory under several cut models: what they share with it, and what each has to own."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightpeft.anatomy import base_of
from lightpeft.checkpoint.base import decisive_differences, describe_base, paddings
from lightpeft.checkpoint.hollow import UnreadWeights
from lightpeft.checkpoint.labels import fit_labels
from lightpeft.errors import CheckpointError
from lightpeft.surgery import record_of
from lightpeft.wrapping import copied_parameters


@dataclass(frozen=True)
class BareBase:
    """A base that a checkpoint is about to be applied to."""

    model: PreTrainedModel

    storages: frozenset[int] = frozenset()
    """Addresses of the weights that belong to the base in memory, and that `model` only uses."""

    blank: frozenset[str] = frozenset()
    """Parameters of `model` that have no values until the checkpoint gives them: a head, say."""

    unread: UnreadWeights | None = None
    """The weights of `model`, if it is without any yet."""

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """While an adapter is attached, a write into a shared weight fails.

        PEFT loads whatever a file names, and would write a base's weight in place, for all who share it. So
        each shared weight is one zero meanwhile, expanded to its shape, which torch refuses to write to.
        What PEFT copies or derives from a weight then (`modules_to_save`, DoRA's magnitudes) is zero until
        the file fills it, and `load` checks that the file has all of it.
        """
        kept = [(parameter, parameter.data) for parameter in self._shared_in(self.model)]
        for parameter, value in kept:
            parameter.data = value.new_zeros(()).expand(value.shape)
        try:
            yield
        finally:
            for parameter, value in kept:
                parameter.data = value

    def part(self, model: PeftModel) -> None:
        """Give `model` its own weights where PEFT may write to them: it merges in place."""
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                for parameter in self._shared_in(layer.get_base_layer()):
                    parameter.data = parameter.data.clone()

    def check_filled(self, model: PeftModel, rest: Mapping[str, Tensor], directory: Path) -> None:
        """Make sure that the checkpoint brought every parameter that the base did not give.

        Raises:
            CheckpointError: it did not, so it was made from another base than this one.
        """
        base = base_of(model)
        empty = sorted(self.blank - rest.keys() - copied_parameters(base))
        if empty:
            raise CheckpointError(
                f"neither the base that was given nor {directory} has {', '.join(empty[:3])} for a model of "
                f"{base.config.num_labels} labels. Give the base that the checkpoint was made from, as a "
                "folder or hub name."
            )

    def _shared_in(self, module: nn.Module) -> list[nn.Parameter]:
        if not self.storages:
            return []
        return [parameter for parameter in module.parameters() if _address(parameter) in self.storages]


def share(base: nn.Module, described: Mapping[str, Any]) -> BareBase:
    """A copy of a base's modules on the base's own weights, with the labels that a checkpoint describes.

    Every matrix is a new Parameter on the same storage, so that surgery, which gives a Parameter other data,
    does not reach the base. What is small (biases, norms, buffers) is copied, because PEFT loads trained
    biases in place. Configuration, hooks and tied weights stay as they are in `base`.

    Args:
        described: what the checkpoint says about its base, see `describe_base`.

    Raises:
        CheckpointError: the base was cut, carries PEFT's layers, or is of another class.
    """
    whole = whole_base(base)
    _check_class(whole, described)
    _check_config(whole, described)
    shared = {id(matrix): matrix for matrix in whole.parameters() if _can_be_shared(matrix)}
    memo: dict[int, Any] = {
        key: nn.Parameter(matrix.data, requires_grad=False) for key, matrix in shared.items()
    }
    model = copy.deepcopy(whole, memo)
    storages = frozenset(_address(matrix) for matrix in shared.values())
    return BareBase(model, storages - {0}, fit_labels(model, described))


def whole_base(base: nn.Module) -> PreTrainedModel:
    """`base` itself, if light checkpoints can be applied to it.

    Raises:
        CheckpointError: it was cut, carries PEFT's layers, or is no transformers model.
    """
    if not isinstance(base, PreTrainedModel):
        hint = "its plain base, loaded anew" if isinstance(base, PeftModel) else "a transformers model"
        raise CheckpointError(f"base= is a {type(base).__name__}; give {hint}, or a folder or hub name.")
    if record_of(base) is not None:
        raise CheckpointError("the base in memory was cut already; load it anew and give that.")
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            raise CheckpointError(
                f"the base in memory carries PEFT's {type(module).__name__} at {name}; load it anew and give "
                "that."
            )
    return base


def _check_class(base: PreTrainedModel, described: Mapping[str, Any]) -> None:
    wanted, found = described.get("auto_class"), describe_base(base)["auto_class"]
    if None not in (wanted, found) and wanted != found:
        raise CheckpointError(
            f"the base in memory is a {type(base).__name__} ({found}), the checkpoint needs its base as "
            f"{wanted}. Load another base for it."
        )


def _check_config(base: PreTrainedModel, described: Mapping[str, Any]) -> None:
    odd = decisive_differences(described.get("config") or {}, base.config)
    if described.get("padding") not in (None, paddings(base)):
        odd.append(f"it counts positions from the padding token {paddings(base)}, not {described['padding']}")
    if odd:
        raise CheckpointError(
            f"the base in memory has another configuration than the one that was cut: {'; '.join(odd[:3])}. "
            "Load it with the same options, or give its folder or hub name as base=."
        )


def _can_be_shared(parameter: nn.Parameter) -> bool:
    """Matrices of plain numbers: a quantised weight keeps state beside them."""
    plain = type(parameter) is nn.Parameter and type(parameter.data) is Tensor
    return plain and parameter.dim() > 1


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
