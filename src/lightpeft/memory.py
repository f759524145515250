"""Memory that tensors take: the bytes of a model, and the most that is held at once while something runs."""

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators make inside the `with`, until each is freed.

    Every operator of forward, backward and optimizer passes here, and a storage is freed with the last tensor
    on it, so `now` and `peak` are exact and the same in every run. A storage counts once, however many views
    it has. Not seen: what a single kernel takes and gives back inside (a workspace), what code of
    `torch.compile` makes inside, and storages that are older than the `with`.
    """

    now: int
    """Bytes held at this moment."""

    peak: int
    """The most bytes held at once since the beginning, or since `reset_peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def reset_peak(self) -> None:
        """Forget what was held before: the peak is what is held now."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = {id(one): one for one in _storages(result) if one.device.type != "meta"}  # those hold nothing
        for storage in _storages((args, kwargs)):  # written in place, or viewed
            made.pop(id(storage), None)
        for key, storage in made.items():
            if key not in self._held:
                self._count(key, storage)
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.now += size
        self._held[key] = weakref.ref(storage, partial(self._free, key, size))

    def _free(self, key: int, size: int, _: weakref.ref[torch.UntypedStorage]) -> None:
        self.now -= size
        del self._held[key]


def peak_bytes(model: nn.Module, action: Callable[[], None]) -> int:
    """Bytes of `model`'s weights plus the most that `action` made and held at once on top.

    The action runs once before, so that what an optimizer makes in its first step does not count. On a GPU
    this is the allocator's own peak, optimizer and workspaces included; on the CPU it is that of `LiveBytes`.
    """
    device = next(model.parameters()).device
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    live = LiveBytes()
    with live:
        action()
    return tensor_bytes(model) + live.peak


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _storages(tree: Any) -> Iterable[torch.UntypedStorage]:
    """The storages of the tensors in arguments or results; a sparse or opaque tensor has none."""
    return (
        leaf.untyped_storage()
        for leaf in tree_iter(tree)
        if isinstance(leaf, Tensor) and torch._C._has_storage(leaf)
    )
