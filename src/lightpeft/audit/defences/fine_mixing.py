"""Fine-mixing (Zhang et al. 2022): replace a random part of the weights by clean ones, then train."""

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

Mix = Literal["select", "average"]
Reference = Literal["identity", "trained"]


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
    `trained` first, which takes a second training."""

    def __post_init__(self) -> None:
        check_share("fine_mixing.ratio", self.ratio)
        check_choice("fine_mixing.mix", self.mix, get_args(Mix))
        check_choice("fine_mixing.reference", self.reference, get_args(Reference))

    def train(self, received: Received) -> PeftModel:
        """The mixture, trained.

        Raises:
            AuditError: the fresh module is of another form.
        """
        layers = map_layers(received.model)
        inner = [group for group in layers.groups if group.number < layers.depth]
        trained = self.reference == "trained"
        clean = trained_afresh(received) if trained else received.fresh(received.seed)
        draw = torch.Generator().manual_seed(received.seed)
        with torch.no_grad():
            for parameter, other in list(counterparts(inner, clean)):
                parameter.copy_(torch.lerp(parameter, other.to(parameter), self._weights(parameter, draw)))
        return received.fit(received.model)

    def _weights(self, like: Tensor, draw: torch.Generator) -> Tensor:
        """What the reference counts at each weight of a tensor: 0 or 1 if they are selected."""
        if self.mix == "average":
            return torch.full_like(like, self.ratio)
        weights = torch.zeros(like.numel())
        weights[torch.randperm(like.numel(), generator=draw)[: exact_count(self.ratio, like.numel())]] = 1
        return weights.view(like.shape).to(like)
