"""Defences that give parts of the received module the values of a fresh one, and train then."""

from dataclasses import dataclass
from typing import Literal, get_args

from peft import PeftModel

from lightpeft.audit.defences.counterparts import reset
from lightpeft.audit.defences.defence import Defence, Received
from lightpeft.audit.errors import AuditError
from lightpeft.audit.policies.layers import LayerGroup, LayerMap, map_layers
from lightpeft.config import check_choice, check_share, exact_count
from lightpeft.errors import ConfigError

Which = Literal["upper", "lower", "all"]


@dataclass(frozen=True)
class ResetHead(Defence, name="reset_head", kind="weights"):
    """Re-initialise the output layer: whatever is trained above the encoder's layers (head, pooler)."""

    def train(self, received: Received) -> PeftModel:
        """The received module under a fresh head, trained.

        Raises:
            AuditError: it trains no output layer, or the fresh module is of another form.
        """
        layers = map_layers(received.model)
        head = [group for group in layers.groups if group.number == layers.depth]
        if not head:
            raise AuditError(
                "the received module trains nothing above the encoder's layers, so there is no head to "
                "reset; choose another defence."
            )
        reset(head, received.fresh(received.seed))
        return received.fit(received.model)


@dataclass(frozen=True)
class ResetLayers(Defence, name="reset_layers", kind="weights"):
    """Reset the PEFT modules of some layers, which then compute the identity; the head is kept."""

    layers: Which = "upper"
    """Which layers lose what they learned: the `upper`, the `lower`, or `all`."""

    share: float = 0.5
    """Share of the encoder layers that `upper` and `lower` mean, rounded half up, at least one."""

    def __post_init__(self) -> None:
        check_choice("reset_layers.layers", self.layers, get_args(Which))
        check_share("reset_layers.share", self.share)
        if self.layers == "all" and self.share != ResetLayers.share:
            raise ConfigError(
                f"reset_layers.share is {self.share!r}, which has no effect where layers is 'all'; leave it "
                "out."
            )

    def train(self, received: Received) -> PeftModel:
        """The received module with fresh layers, trained.

        Raises:
            AuditError: nothing is trained in these layers, the module is one layer (a prompt), or the fresh
                one is of another form.
        """
        reset(self.chosen(map_layers(received.model)), received.fresh(received.seed))
        return received.fit(received.model)

    def chosen(self, layers: LayerMap) -> list[LayerGroup]:
        """The groups to reset.

        Raises:
            AuditError: there are none, or there is one layer only, and some are asked for.
        """
        if layers.single is not None and self.layers != "all":
            raise AuditError(
                f"reset_layers.layers is {self.layers!r}, but {layers.single}; reset 'all', or choose "
                "another defence."
            )
        count = max(1, exact_count(self.share, layers.depth))
        numbers = {
            "upper": range(layers.depth - count, layers.depth),
            "lower": range(count),
            "all": range(layers.depth),
        }[self.layers]
        found = [group for group in layers.groups if group.number in numbers]
        if not found:
            raise AuditError(
                f"nothing is trained in the {self.layers} {len(numbers)} of {layers.depth} layers, so there "
                "is nothing to reset; choose other layers."
            )
        return found
