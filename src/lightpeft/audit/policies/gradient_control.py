"""Gradient control (Gu et al., ACL 2023): CLNorm, ILProj, and both, which is the paper's method."""

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from lightpeft.audit.policies.cross_layer import LayerWeights
from lightpeft.audit.policies.gradients import TaskPair
from lightpeft.audit.policies.layers import LayerMap
from lightpeft.audit.policies.policy import Policy
from lightpeft.audit.policies.projection import control

if TYPE_CHECKING:
    from lightpeft.audit.policies.options import PolicyOptions


class CLNorm(Policy):
    """g_c + w_l g_p: the poisoned norm is drawn to a line that falls from layer to layer (eq. 1, 3, 4).

    A step uses the weights as they are and then updates them, so that the first step is joint training.
    """

    reads: ClassVar[tuple[str, ...]] = ("alpha", "alpha_scale", "alpha_memory", "middle_layer", "zero_layer")

    def __init__(self, options: "PolicyOptions", layers: LayerMap) -> None:
        """
        Raises:
            ConfigError: the model has a single layer, see `LayerWeights`.
        """
        super().__init__(options, layers)
        self._weights = LayerWeights(options, layers)

    def combine(self, pair: TaskPair) -> list[Tensor]:
        """The weighted sum, layer by layer."""
        return [clean + poisoned for clean, poisoned in zip(pair.clean, self.weighted(pair), strict=True)]

    def weighted(self, pair: TaskPair) -> list[Tensor]:
        """w_l g_p (eq. 1)."""
        return [w * gradient for w, gradient in zip(self._weights.values, pair.poisoned, strict=True)]

    def update(self, pair: TaskPair) -> None:
        """One step of the weights, from the norms before weighting."""
        self._weights.update(pair.poisoned_norms)

    def readings(self) -> dict[str, list[float]]:
        """`w`: w_l of each group."""
        return {"w": list(self._weights.values)}


class ILProj(Policy):
    """Projection inside the upper layers, the sum in the lower ones (eq. 5-7)."""

    reads = ("projection", "beta_lower", "beta_upper")

    def combine(self, pair: TaskPair) -> list[Tensor]:
        """The controlled gradient, layer by layer."""
        return controlled(self, pair.clean, pair.poisoned)


class GradientControl(CLNorm):
    """CLNorm first, then ILProj on g_c and w_l g_p."""

    reads = (*CLNorm.reads, *ILProj.reads)

    def combine(self, pair: TaskPair) -> list[Tensor]:
        """The controlled gradient, layer by layer."""
        return controlled(self, pair.clean, self.weighted(pair))


def controlled(policy: Policy, clean: list[Tensor], poisoned: list[Tensor]) -> list[Tensor]:
    """Eq. 7 for every group, with the β of its half."""
    options, layers = policy.options, policy.layers
    return [
        control(
            g_c, g_p, options.beta_lower if layers.is_lower(group) else options.beta_upper, options.projection
        )
        for group, g_c, g_p in zip(layers.groups, clean, poisoned, strict=True)
    ]
