"""The processes that train one model together: what one of them knows and all of them need."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightpeft.errors import ConfigError, LightPeftError

T = TypeVar("T")

_OF_PARTS = ("full_tensor", "ds_id")
"""What a DTensor has (FSDP2, tensor parallelism) and what a parameter under DeepSpeed's ZeRO 3. torch cannot
import the class of the first where it is built without torch.distributed."""

TWO_PHASES = (
    "Estimate and cut in a first phase, and train the cut model, an ordinary PeftModel, under that engine in "
    "a second one: examples/two_phase.py, docs/distributed.md."
)


@dataclass(frozen=True)
class Processes:
    """Those of a run, as one of them sees them; by default there is no other.

    Every method but the properties is called by all of them, in the same order, or by none.
    """

    count: int = 1
    index: int = 0

    @classmethod
    def of_group(cls) -> "Processes":
        """Those of torch's default process group, where there is one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_world_size(), dist.get_rank())

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that decides."""
        return self.index == 0

    @torch.no_grad()
    def average(self, values: Tensor) -> Tensor:
        """The mean over the processes, in place; no device is waited for."""
        if not self.is_alone:
            values /= self.count
            dist.all_reduce(values)
        return values

    @torch.no_grad()
    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over the processes, as new tensors."""
        if self.is_alone:
            return dict(values)
        sums = {name: value.clone() for name, value in values.items()}
        for value in sums.values():
            dist.all_reduce(value)
        return sums

    def shared(self, value: T) -> T:
        """The value that the first process gives."""
        if self.is_alone:
            return value
        held: list[Any] = [value if self.is_first else None]
        dist.broadcast_object_list(held)
        found: T = held[0]
        return found

    def decided(self, work: Callable[[], T]) -> T:
        """What `work` returns in the first process, where alone it is done.

        Raises:
            Exception: what it raised there; in the others, of an error that is not lightpeft's, the text.
        """
        made: T | None = None
        with self.agreed():
            if self.is_first:
                made = work()
        found: T = self.shared(made)  # type: ignore[assignment]
        return found

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What raises in one process raises in all of them, at the end of the context.

        Raises:
            LightPeftError: where another failed: its error, or of what is not lightpeft's own the text.
        """
        if self.is_alone:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        told = self.gathered(None if failed is None else _told(failed))
        if failed is not None:
            raise failed
        for index, one in enumerate(told):
            if one is not None:
                kind, text = one
                raise kind(f"{text} (found by process {index} of {self.count})")

    def gathered(self, value: T) -> list[T]:
        """What each of them gives, in their order."""
        if self.is_alone:
            return [value]
        held: list[Any] = [None] * self.count
        dist.all_gather_object(held, value)
        return held

    def wait(self) -> None:
        """Until all of them are here."""
        if not self.is_alone:
            dist.barrier()


def whole(values: Tensor) -> Tensor:
    """All of a tensor that FSDP keeps in parts; called by all processes. Any other tensor is itself."""
    if not hasattr(values, "full_tensor"):
        return values
    gathered: Tensor = values.full_tensor()
    return gathered


def require_whole(model: nn.Module, what: str) -> None:
    """Refuse a model of whose parameters every process has a part.

    Args:
        what: cannot be done with it.

    Raises:
        ConfigError: some are in parts.
    """
    if any(hasattr(parameter, mark) for parameter in model.parameters() for mark in _OF_PARTS):
        raise ConfigError(
            f"{what}: the model's parameters are in parts on several processes (FSDP, DeepSpeed's ZeRO 3, "
            "tensor parallelism). "
            f"{TWO_PHASES}"
        )


def _told(error: Exception) -> tuple[type[LightPeftError], str]:
    """An error in a form that another process can raise."""
    if isinstance(error, LightPeftError):
        return type(error), str(error)
    return LightPeftError, f"{type(error).__name__}: {error}"
