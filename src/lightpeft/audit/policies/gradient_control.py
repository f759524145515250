"""Gradient control (Gu et al., ACL 2023): CLNorm, ILProj, and both, which is the paper's method."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from lightpeft.audit.policies.gradients import TaskPair
from lightpeft.audit.policies.layers import LayerMap
from lightpeft.audit.policies.policy import Policy
from lightpeft.errors import ConfigError

if TYPE_CHECKING:
    from lightpeft.audit.policies.options import PolicyOptions, Projection


class CLNorm(Policy):
    """Cross-layer normalisation, g_c + w_l g_p: the poisoned norm is drawn to a line that falls from layer to
    layer (eq. 1, 3, 4).

    A step uses the weights as they are and then updates them, so that the first step is joint training.
    """

    reads: ClassVar[tuple[str, ...]] = ("alpha", "alpha_scale", "alpha_memory", "middle_layer", "zero_layer")

    def __init__(self, options: "PolicyOptions", layers: LayerMap) -> None:
        """
        Raises:
            ConfigError: the model has a single layer, or l_a = l_o.
        """
        super().__init__(options, layers)
        if layers.single is not None:
            raise ConfigError(
                f"CLNorm balances layers against each other, but {layers.single}; use 'ilproj', or a form of "
                "PEFT with a module in every layer."
            )
        self.zero = float(layers.depth) if options.zero_layer is None else float(options.zero_layer)
        self.middle = self.zero / 2 if options.middle_layer is None else float(options.middle_layer)
        if self.middle == self.zero:
            raise ConfigError(
                f"l_a and l_o of CLNorm are both {self.zero} in a model of {layers.depth} layers; give "
                "policy.middle_layer and policy.zero_layer that differ."
            )
        self.weights = [1.0] * len(layers.groups)
        self._mean_squares: list[float] | None = None
        self._warned = False

    def combine(self, pair: TaskPair) -> list[Tensor]:
        """The weighted sum, layer by layer."""
        return [clean + poisoned for clean, poisoned in zip(pair.clean, self.weighted(pair), strict=True)]

    def weighted(self, pair: TaskPair) -> list[Tensor]:
        """w_l g_p (eq. 1)."""
        return [w * gradient for w, gradient in zip(self.weights, pair.poisoned, strict=True)]

    def update(self, pair: TaskPair) -> None:
        """w_l ← w_l - α (w_l · g - z) · g (eq. 4), g = ‖g_p^(l)‖₂ before weighting: one step towards z/g.

        A step that is too long would end below 0, where the layer unlearns the poisoned task: it ends at 0.
        """
        norms = pair.poisoned_norms
        wanted = wanted_norms(norms, [group.number for group in self.layers.groups], self.middle, self.zero)
        rates = self._rates([norm * norm for norm in norms])
        weights = [
            w - rate * (w * g - z) * g
            for w, rate, g, z in zip(self.weights, rates, norms, wanted, strict=True)
        ]
        if min(weights) < 0:
            self._warn(
                f"CLNorm: a weight w_l would be {min(weights):.3g}, and is 0; at a smaller policy.alpha it "
                "does not jump over 0."
            )
        self.weights = [max(0.0, w) for w in weights]

    def readings(self) -> dict[str, list[float]]:
        """`w`: w_l of each group."""
        return {"w": list(self.weights)}

    def _rates(self, squares: Sequence[float]) -> list[float]:
        """α of each layer."""
        alpha = self.options.alpha
        if self.options.alpha_scale == "absolute":
            speed = max(alpha * square for square in squares)
            if speed > 2:
                self._warn(
                    f"CLNorm: α · g² is {speed:.3g}; above 2 the weights w_l swing further with every step. "
                    "Use a smaller policy.alpha, or policy.alpha_scale='relative'."
                )
            return [alpha] * len(squares)
        keep = self.options.alpha_memory
        before = squares if self._mean_squares is None else self._mean_squares
        means = [keep * old + (1 - keep) * new for old, new in zip(before, squares, strict=True)]
        self._mean_squares = means
        return [alpha / mean if mean > 0 else 0.0 for mean in means]

    def _warn(self, message: str) -> None:
        """The first of all messages only: what comes later follows from it."""
        if not self._warned:
            self._warned = True
            warnings.warn(message, RuntimeWarning, stacklevel=3)


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


def wanted_norms(norms: Sequence[float], numbers: Sequence[int], middle: float, zero: float) -> list[float]:
    """z^(l) = Avg[G_p] / (l_a - l_o) · (l - l_o) (eq. 3).

    Args:
        norms: ‖g_p^(l)‖₂ of this step, unweighted; G_p is all of them, the output layer's too.
            Where the line is below 0, beyond l_o, the wanted norm is 0.
        numbers: the layers' numbers l.
        middle, zero: l_a and l_o.
    """
    mean = sum(norms) / len(norms)
    return [max(0.0, mean / (middle - zero) * (number - zero)) for number in numbers]


def project(gradient: Tensor, other: Tensor, projection: "Projection" = "conditional") -> Tensor:
    """g_i - (g_i · g_j / ‖g_j‖²) g_j (eq. 5): g_i without its part along g_j. Both are vectors (numbers,).

    `conditional`: only where g_i · g_j < 0 (PCGrad; Yu et al. 2020, algorithm 1). `literal`: always. Where
    g_j is 0, g_i stays.
    """
    inner, square = gradient @ other, other @ other
    if projection == "conditional":
        inner = inner.clamp(max=0)
    share = inner / square.where(square > 0, 1)
    return gradient - share * other


def controlled(policy: Policy, clean: list[Tensor], poisoned: list[Tensor]) -> list[Tensor]:
    """(1 - β)(ĝ_c + ĝ_p) + β (g_c + g_p) of every group, with the β of its half (eq. 6, 7)."""
    options, found = policy.options, []
    for group, g_c, g_p in zip(policy.layers.groups, clean, poisoned, strict=True):
        beta = options.beta_lower if policy.layers.is_lower(group) else options.beta_upper
        joint = g_c + g_p
        if beta < 1:
            projected = project(g_c, g_p, options.projection) + project(g_p, g_c, options.projection)
            joint = projected if beta == 0 else (1 - beta) * projected + beta * joint
        found.append(joint)
    return found
