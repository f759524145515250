"""The table of gradient policies."""

from typing import TYPE_CHECKING

from lightpeft.audit.policies.baselines import GradNorm, LayerwisePoisoning, PCGrad, Ripple, Vanilla
from lightpeft.audit.policies.gradient_control import CLNorm, GradientControl, ILProj
from lightpeft.audit.policies.layers import LayerMap
from lightpeft.audit.policies.policy import Policy

if TYPE_CHECKING:
    from lightpeft.audit.policies.options import PolicyOptions

POLICIES: dict[str, type[Policy]] = {
    "vanilla": Vanilla,
    "ripple": Ripple,
    "lwp": LayerwisePoisoning,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "clnorm": CLNorm,
    "ilproj": ILProj,
    "gradient_control": GradientControl,
}
"""By name. A new policy is a class, which says what options it reads, and a row here."""


def make_policy(options: "PolicyOptions", layers: LayerMap) -> Policy:
    """A new policy for the layers of a model; take one for each training run.

    Raises:
        ConfigError: it does not apply to this form of PEFT (CLNorm on a prompt), or its options contradict
        the
            number of layers.
    """
    return POLICIES[options.name](options, layers)
