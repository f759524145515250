"""Fine-mixing (Zhang et al. 2022): replace a random part of the weights by clean ones, then train.

With another module that was received the mixture is a model merge (Arora et al. 2024): what one of them alone
learned, as a backdoor, fades, whether the other one is clean or has another backdoor.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from peft import PeftModel
from torch import Tensor

from lightpeft.audit.defences.counterparts import counterparts
from lightpeft.audit.defences.defence import Defence, Received
from lightpeft.audit.defences.retraining import trained_afresh
from lightpeft.audit.policies.layers import map_layers
from lightpeft.config import check_choice, check_share, exact_count
from lightpeft.errors import ConfigError

Mix = Literal["select", "average"]
Reference = Literal["identity", "trained", "received"]


@dataclass(frozen=True)
class FineMixing(Defence, name="fine_mixing", kind="weights", source="Zhang et al. 2022"):
    """Mix the received module with a clean reference, weight by weight, and train the mixture.

    What is mixed is what the module trains inside the encoder's layers. The head is kept as received: where
    the published method takes clean weights from, the pre-trained model, there is none.
    """

    ratio: float = 0.5
    """Share of the clean reference in the mixture."""

    mix: Mix = "select"
    """`select`: each weight is of one side, drawn at random, as published; `average`: of both sides,
    (1 - ratio) · received + ratio · reference."""

    reference: Reference = "identity"
    """Clean weights: those of a fresh module, which computes the `identity`, or of a fresh one that the user
    `trained` first, which takes a second training; or those of another module that was `received`."""

    other: str | None = None
    """Of `reference` received: the folder of that module, of the same form and sizes on the same base."""

    def __post_init__(self) -> None:
        check_share("fine_mixing.ratio", self.ratio)
        check_choice("fine_mixing.mix", self.mix, get_args(Mix))
        check_choice("fine_mixing.reference", self.reference, get_args(Reference))
        if (self.other is not None) != (self.reference == "received"):
            raise ConfigError(
                f"fine_mixing.other is {self.other!r} and fine_mixing.reference {self.reference!r}: the "
                "folder of another module goes with reference 'received', and with no other."
            )

    def train(self, received: Received) -> PeftModel:
        """The mixture, trained.

        Raises:
            AuditError: the module to mix with is of another form.
            CheckpointError: the other received module cannot be loaded.
        """
        layers = map_layers(received.model)
        inner = [group for group in layers.groups if group.number < layers.depth]
        clean = self._reference(received)
        draw = torch.Generator().manual_seed(received.seed)
        with torch.no_grad():
            for parameter, other in list(counterparts(inner, clean)):
                parameter.copy_(torch.lerp(parameter, other.to(parameter), self._weights(parameter, draw)))
        return received.fit(received.model)

    def _reference(self, received: Received) -> PeftModel:
        if self.other is not None:
            return received.load(self.other)
        return trained_afresh(received) if self.reference == "trained" else received.fresh(received.seed)

    def _weights(self, like: Tensor, draw: torch.Generator) -> Tensor:
        """What the reference counts at each weight of a tensor: 0 or 1 if they are selected."""
        if self.mix == "average":
            return torch.full_like(like, self.ratio)
        weights = torch.zeros(like.numel())
        weights[torch.randperm(like.numel(), generator=draw)[: exact_count(self.ratio, like.numel())]] = 1
        return weights.view(like.shape).to(like)
