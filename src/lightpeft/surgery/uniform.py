"""What a uniform plan leaves out so that the cut model is an ordinary one."""

from torch import nn

from lightpeft.anatomy import base_of, find_anatomy, gives_bias, linear_at, stock_of
from lightpeft.plan import Plan


def without_bias(model: nn.Module, plan: Plan) -> frozenset[str]:
    """Output projections that lose inputs by a uniform plan, and that the configuration of an ordinary model
    gives no bias; empty for other plans.

    Args:
        model: the uncut one.
    """
    if not plan.budget.uniform:
        return frozenset()
    base = base_of(model)
    return frozenset(
        units.out
        for layer, wanted in zip(find_anatomy(model).layers, plan.layers, strict=True)
        for units, kept in layer.with_kept(wanted.heads, wanted.neurons)
        if len(kept) < units.count
        and not wanted.skipped
        and linear_at(base, units.out).bias is None
        and not gives_bias(stock_of(base, layer), base.config, units.kind, len(wanted.heads))
    )
