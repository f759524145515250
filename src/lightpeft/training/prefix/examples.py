"""Which example a row of a batch is, whatever it was padded with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from lightpeft.errors import LightPeftError

_MASK = "attention_mask"
_WITHOUT_EFFECT = {
    "use_cache",
    "return_dict",
    "return_loss",
    "output_attentions",
    "output_hidden_states",
    "num_items_in_batch",
    "labels",
}
"""Arguments that change nothing in the lower layers."""

_PLAIN = (bool, int, float, str)


class UnknownInputError(LightPeftError):
    """An argument from which an example cannot be recognised."""


class Batch:
    """The arguments of a stack of layers, as examples.

    Args:
        inputs: by name, None left out; the first dimension of the tensor called `main` counts the examples.
        main: the argument that the model reads first, such as `input_ids` or `pixel_values`.

    Raises:
        UnknownInputError: an argument is neither a tensor nor a plain value.
    """

    def __init__(self, inputs: Mapping[str, Any], main: str) -> None:
        self.inputs = {name: value for name, value in inputs.items() if name not in _WITHOUT_EFFECT}
        odd = [name for name, value in self.inputs.items() if not isinstance(value, (Tensor, *_PLAIN))]
        if odd:
            raise UnknownInputError(
                f"{odd[0]} is a {type(self.inputs[odd[0]]).__name__}, by which examples cannot be told apart"
            )
        first = self.inputs.get(main, self.inputs.get("inputs_embeds"))
        if not isinstance(first, Tensor) or first.dim() == 0:
            raise UnknownInputError(f"there is no {main} by which examples could be told apart")
        self.size = len(first)
        mask = self.inputs.get(_MASK)
        self.mask: Tensor | None = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        """(examples, tokens), True where there is a real token; None where that is not known."""

    def rows(self, chosen: Sequence[int]) -> dict[str, Any]:
        """The arguments for some of the examples."""
        if len(chosen) == self.size:
            return dict(self.inputs)
        return {
            name: value[list(chosen)] if self._is_per_example(value) else value
            for name, value in self.inputs.items()
        }

    def keys(self, *, by_token: bool) -> list[bytes]:
        """One key per example, of everything that its activations depend on.

        Args:
            by_token: leave out what stands where `mask` is False, and where that is.
        """
        tensors = {name: _as_array(value) for name, value in self.inputs.items() if isinstance(value, Tensor)}
        own = {name: tensors[name] for name in sorted(tensors) if self._is_per_example(self.inputs[name])}
        mask = _as_array(self.mask) if by_token and self.mask is not None else None
        shared = self._shared(tensors.keys() - own.keys(), tensors)
        return [self._key(shared, own, row, mask) for row in range(self.size)]

    def _key(self, shared: bytes, own: Mapping[str, np.ndarray], row: int, mask: np.ndarray | None) -> bytes:
        digest = xxhash.xxh3_128(shared)
        places = None if mask is None else np.flatnonzero(mask[row])
        if places is not None:
            digest.update(places.tobytes())
        for name, values in own.items():
            value = values[row]
            if mask is not None and values.shape[:2] == mask.shape:
                value = value[places]
            digest.update(f"{name}{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        return digest.digest()

    def _shared(self, names: set[str], tensors: Mapping[str, np.ndarray]) -> bytes:
        digest = xxhash.xxh3_128()
        for name in sorted(names):
            digest.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode())
            digest.update(np.ascontiguousarray(tensors[name]).tobytes())
        plain = {name: value for name, value in self.inputs.items() if not isinstance(value, Tensor)}
        digest.update(repr([sorted(plain.items()), self._precision()]).encode())
        return digest.digest()

    def _precision(self) -> str | None:
        """In what the layers compute where autocast is on."""
        kind = next(value.device.type for value in self.inputs.values() if isinstance(value, Tensor))
        return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None

    def _is_per_example(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.size


def _as_array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return value.view(torch.uint8).numpy() if value.dtype == torch.bfloat16 else value.numpy()
