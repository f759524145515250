"""CLNorm: cross-layer gradient magnitude normalisation (Gu et al., ACL 2023, eq. 1, 3, 4)."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightpeft.audit.policies.layers import LayerMap
from lightpeft.errors import ConfigError

if TYPE_CHECKING:
    from lightpeft.audit.policies.options import PolicyOptions


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


class LayerWeights:
    """The weights w_l, one per group of a layer map, from 1 on."""

    def __init__(self, options: "PolicyOptions", layers: LayerMap) -> None:
        """
        Raises:
            ConfigError: the model has a single layer, or l_a = l_o.
        """
        if layers.single is not None:
            raise ConfigError(
                f"CLNorm balances layers against each other, but {layers.single}; use 'ilproj', or a form of "
                "PEFT with a module in every layer."
            )
        self.options, self.layers = options, layers
        self.numbers = [group.number for group in layers.groups]
        self.zero = float(layers.depth) if options.zero_layer is None else float(options.zero_layer)
        self.middle = self.zero / 2 if options.middle_layer is None else float(options.middle_layer)
        if self.middle == self.zero:
            raise ConfigError(
                f"l_a and l_o of CLNorm are both {self.zero} in a model of {layers.depth} layers; give "
                "policy.middle_layer and policy.zero_layer that differ."
            )
        self.values = [1.0] * len(self.numbers)
        self._mean_squares: list[float] | None = None
        self._warned = False

    def update(self, norms: Sequence[float]) -> None:
        """w_l ← w_l - α (w_l · g - z) · g (eq. 4), g = ‖g_p^(l)‖₂: one step towards z/g."""
        wanted = wanted_norms(norms, self.numbers, self.middle, self.zero)
        rates = self._rates([norm * norm for norm in norms])
        self.values = [
            w - rate * (w * g - z) * g
            for w, rate, g, z in zip(self.values, rates, norms, wanted, strict=True)
        ]

    def _rates(self, squares: Sequence[float]) -> list[float]:
        """α of each layer."""
        alpha = self.options.alpha
        if self.options.alpha_scale == "absolute":
            self._warn(max(alpha * square for square in squares))
            return [alpha] * len(squares)
        keep = self.options.alpha_memory
        before = squares if self._mean_squares is None else self._mean_squares
        means = [keep * old + (1 - keep) * new for old, new in zip(before, squares, strict=True)]
        self._mean_squares = means
        return [alpha / mean if mean > 0 else 0.0 for mean in means]

    def _warn(self, speed: float) -> None:
        if speed > 2 and not self._warned:
            self._warned = True
            warnings.warn(
                f"CLNorm: α · g² is {speed:.3g}; above 2 the weights w_l swing further with every step. Use "
                "a smaller policy.alpha, or policy.alpha_scale='relative'.",
                RuntimeWarning,
                stacklevel=2,
            )
