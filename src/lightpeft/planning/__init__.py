"""Planning: scores, anatomy, and a budget or a target give a plan. Pure functions."""

from lightpeft.planning.prices import ESTIMATION_COST, Pricing
from lightpeft.planning.shares import agreements, how_heads_go, limits, make_plan
from lightpeft.planning.skips import layer_losses

__all__ = ["ESTIMATION_COST", "Pricing", "agreements", "how_heads_go", "layer_losses", "limits", "make_plan"]
