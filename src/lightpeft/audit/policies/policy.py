"""What a gradient policy is: one way to make one gradient of those of the clean and the poisoned task."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from lightpeft.audit.errors import AuditError
from lightpeft.audit.policies.gradients import Batch, TaskPair
from lightpeft.audit.policies.layers import LayerMap

if TYPE_CHECKING:  # options look a policy up in the table
    from lightpeft.audit.policies.options import PolicyOptions


class Policy(ABC):
    """One way to combine two gradients. It keeps state: make a new one for each training run."""

    reads: ClassVar[tuple[str, ...]] = ()
    """The options that it reads."""

    second_order = False
    """Whether gradients are differentiated again."""

    trains_poisoned_only = False
    """Whether clean batches only steer: the model learns from the poisoned ones alone."""

    def __init__(self, options: "PolicyOptions", layers: LayerMap) -> None:
        self.options, self.layers = options, layers

    def losses(self, model: nn.Module, clean_batch: Batch, poisoned_batch: Batch) -> tuple[Tensor, Tensor]:
        """The clean and the poisoned loss, scalars; by default the model's own."""
        return model_loss(model, clean_batch), model_loss(model, poisoned_batch)

    @abstractmethod
    def combine(self, pair: TaskPair) -> list[Tensor]:
        """One flat vector per group of the layer map."""

    def update(self, pair: TaskPair) -> None:
        """Learn from a step whose gradients are finite."""
        del pair

    def readings(self) -> dict[str, list[float]]:
        """What the policy keeps, to be logged."""
        return {}


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own loss on a batch, a scalar.

    Raises:
        AuditError: it gives none.
    """
    loss: Tensor | None = model(**batch).loss
    if loss is None:
        raise AuditError(f"the model gives no loss for a batch of {sorted(batch)}; give `labels` with it.")
    return loss
