"""Models without values: transformers builds one, and every weight is read from its file when it is needed.

In a hollow model one zero stands for all values of a weight, expanded to its shape. transformers puts those
zeros where it would put what the files hold, whatever the names are there, so that each weight tells by its
zero where its values are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightpeft.errors import CheckpointError
from lightpeft.surgery import digest_of


def stand_in(shape: torch.Size | list[int], dtype: torch.dtype) -> Tensor:
    """One zero in place of values of this shape."""
    return torch.zeros((), dtype=dtype).expand(torch.Size(shape))


@dataclass(frozen=True)
class Place:
    """Where the values of a weight are."""

    file: Path
    key: str
    through: torch.dtype | None = None
    """The dtype that they go through on their way into that of the weight."""

    def read(self) -> Tensor:
        """The values, in memory of their own: of a mapped file all would stay in memory that was looked at.

        Raises:
            CheckpointError: the file cannot be read.
        """
        with opened(self.file) as file:
            value: Tensor = file.get_tensor(self.key)
        return value if self.through is None else value.to(self.through)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file of tensors, which are read one by one.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it is damaged or cut off.") from error


class Places:
    """By its zero, where a weight of a hollow model is."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Tensor, Place]] = {}  # with the zero, so that its address stays taken

    def note(self, place: Place, shape: torch.Size | list[int], dtype: torch.dtype) -> Tensor:
        """A new zero for what is at `place`."""
        zero = stand_in(shape, dtype)
        self._found[_address(zero)] = zero, place
        return zero

    def of(self, tensor: Tensor) -> Place | None:
        """Where the values of a tensor are, if it is without them."""
        found = self._found.get(_address(tensor))
        return None if found is None else found[1]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class UnreadWeights:
    """The weights of a hollow base, and what was seen of them when they were read.

    Args:
        base: as its class builds it, not cut yet.
    """

    def __init__(self, base: nn.Module, places: Places) -> None:
        self._places = places
        self._parameters = dict(base.named_parameters())
        self._buffers = [buffer for _, buffer in base.named_buffers()]
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._digests: dict[str, str] = {}

    def fill(self, weight: Tensor) -> None:
        """Read the values of a weight, unless they were.

        Raises:
            CheckpointError: its file cannot be read, or was changed.
        """
        place = self._places.of(weight)
        if place is None:
            return
        value = place.read().to(weight.dtype)
        if value.shape != weight.shape:
            raise CheckpointError(f"{place.file} was changed while it was read.")
        weight.data = value
        if id(weight) in self._names:
            self._digests[self._names[id(weight)]] = digest_of(value)

    def digests(self) -> dict[str, str]:
        """Digests of all parameters as the files give them; those that were not read yet are read.

        Raises:
            CheckpointError: see `fill`.
        """
        for weight in (*self._parameters.values(), *self._buffers):
            self.fill(weight)
        given_no_values = self._parameters.keys() - self._digests.keys()
        return self._digests | {name: digest_of(self._parameters[name].detach()) for name in given_no_values}


def build_hollow(
    name: str,
    auto_class: Any,
    class_name: str,
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    **options: Any,
) -> tuple[PreTrainedModel, frozenset[str]] | None:
    """A model by `from_pretrained`, of what is given instead of files; None if its class is not known.

    Args:
        name: the folder or hub name that it will say it is from.
        class_name: of the classes that `auto_class` builds by this configuration.
        weights: real ones or zeros that stand for some, by the names of files.

    Returns:
        the model, and the names of what it draws at random because `weights` do not give it in this shape.
    """
    found = auto_class._model_mapping[type(config)]
    kinds = found if isinstance(found, tuple | list) else (found,)
    kind = next((kind for kind in kinds if kind.__name__ == class_name), None)
    if kind is None:
        return None
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    model.name_or_path = model.config._name_or_path = name
    return model, random_names(info)


def random_names(info: Mapping[str, Any]) -> frozenset[str]:
    """From what `from_pretrained` says, the names of the weights that it drew at random."""
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
    return frozenset(info["missing_keys"]) | mismatched
