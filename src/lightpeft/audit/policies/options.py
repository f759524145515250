"""What can be asked of a gradient policy: the text under each field is its documentation."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from lightpeft.config import check_choice, check_number, check_share
from lightpeft.errors import ConfigError

AlphaScale = Literal["absolute", "relative"]
Projection = Literal["conditional", "literal"]
LayerwiseTasks = Literal["poisoned", "both"]


@dataclass(frozen=True)
class PolicyOptions:
    """How the gradients of the clean and the poisoned task become one.

    Raises:
        ConfigError: values out of range, or options that the policy does not read.
    """

    name: str = "gradient_control"
    """`vanilla` (joint training), `ripple`, `lwp`, `gradnorm`, `pcgrad`, `clnorm`, `ilproj`, or
    `gradient_control` (CLNorm, then ILProj)."""

    alpha: float = 1e-4
    """CLNorm: α, step size of the weights w_l (eq. 4)."""

    alpha_scale: AlphaScale = "absolute"
    """CLNorm: `absolute` as in eq. 4, whose speed grows with g²; `relative` divides α by a running mean of
    the layer's g², so that w_l goes about the share α of its way to z/g in each step."""

    alpha_memory: float = 0.9
    """CLNorm with `relative`: what the running mean of g² keeps of itself at each step."""

    middle_layer: float | None = None
    """CLNorm: l_a of eq. 3, where the wanted norm is the mean; by default half of `zero_layer`, which keeps
    the mean of all layers."""

    zero_layer: float | None = None
    """CLNorm: l_o of eq. 3, where the wanted norm is 0; by default N, the output layer."""

    projection: Projection = "conditional"
    """ILProj: project `conditional`ly, only where g_c · g_p < 0 (as PCGrad), or always (`literal`, eq. 5),
    which erases what both gradients agree on."""

    beta_lower: float = 1.0
    """ILProj: β of the lower half of the layers (eq. 7): 1 leaves their sum as it is, 0 projects."""

    beta_upper: float = 0.0
    """ILProj: β of the upper half, of the output layer, and of a prompt, which is one layer."""

    ripple_lambda: float = 0.1
    """RIPPLe: λ, weight of the penalty on gradients that point against each other."""

    layerwise_tasks: LayerwiseTasks = "poisoned"
    """LWP: whether the `poisoned` task alone or `both` have a loss at every layer."""

    gradnorm_alpha: float = 1.5
    """GradNorm: how much faster a slow task is to train (α of Chen et al.)."""

    gradnorm_rate: float = 0.025
    """GradNorm: learning rate of the two task weights (Adam)."""

    def __post_init__(self) -> None:
        from lightpeft.audit.policies.table import POLICIES

        check_choice("policy.name", self.name, tuple(POLICIES))
        for name, allowed in (
            ("alpha_scale", AlphaScale),
            ("projection", Projection),
            ("layerwise_tasks", LayerwiseTasks),
        ):
            check_choice(f"policy.{name}", getattr(self, name), get_args(allowed))
        for name in ("alpha", "ripple_lambda", "gradnorm_alpha", "gradnorm_rate"):
            check_number(f"policy.{name}", getattr(self, name))
        check_share("policy.alpha_memory", self.alpha_memory)
        for name in ("beta_lower", "beta_upper"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigError(f"policy.{name} is {value!r}; give a number in [0, 1].")
        self._check_layers()
        self._check_idle()

    def _check_layers(self) -> None:
        for name in ("middle_layer", "zero_layer"):
            if getattr(self, name) is not None:
                check_number(f"policy.{name}", getattr(self, name))
        if self.middle_layer is not None and self.middle_layer == self.zero_layer:
            raise ConfigError(
                f"policy.middle_layer and policy.zero_layer are both {self.zero_layer}; the wanted norm "
                "cannot be the mean and 0 at the same layer."
            )

    def _check_idle(self) -> None:
        from lightpeft.audit.policies.table import POLICIES

        fields = [field for field in dataclasses.fields(self) if field.name != "name"]
        changed = [field.name for field in fields if getattr(self, field.name) != field.default]
        reads = POLICIES[self.name].reads
        idle = [name for name in changed if name not in reads]
        if self.alpha_scale == "absolute" and "alpha_memory" in changed and "alpha_memory" not in idle:
            idle.append("alpha_memory")
        if idle:
            raise ConfigError(
                f"policy {self.name!r} does not read {', '.join(idle)}; leave them out. It reads "
                f"{', '.join(reads) or 'no options'}."
            )
