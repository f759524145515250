"""The table of gradient policies."""

from lightpeft.audit.policies.baselines import GradNorm, LayerwisePoisoning, PCGrad, Ripple, Vanilla
from lightpeft.audit.policies.gradient_control import CLNorm, GradientControl, ILProj
from lightpeft.audit.policies.layers import LayerMap
from lightpeft.audit.policies.options import PolicyName, PolicyOptions
from lightpeft.audit.policies.policy import Policy

POLICIES: dict[PolicyName, type[Policy]] = {
    "vanilla": Vanilla,
    "ripple": Ripple,
    "lwp": LayerwisePoisoning,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "clnorm": CLNorm,
    "ilproj": ILProj,
    "gradient_control": GradientControl,
}
"""By name. A new policy is a class, a name in `PolicyName`, a row in `READ_BY`, and a row here."""


def make_policy(options: PolicyOptions, layers: LayerMap) -> Policy:
    """A new policy for the layers of a model; take one for each training run.

    Raises:
        ConfigError: it does not apply to this form of PEFT (CLNorm on a prompt), or its options contradict
        the
            number of layers.
    """
    return POLICIES[options.name](options, layers)
