"""Which whole layers are skipped, by a share of them, and what that loses."""

from lightpeft.anatomy import Anatomy
from lightpeft.config import Budget, exact_count
from lightpeft.errors import PlanError
from lightpeft.scores import Scores


def choose_skipped(scores: Scores, anatomy: Anatomy, budget: Budget) -> frozenset[str]:
    """The modules of the layers that are skipped: those that lose least."""
    count = exact_count(budget.layers, len(anatomy.skippable))
    if budget.layers and not anatomy.skippable:
        raise PlanError(
            f"budget.layers={budget.layers:g}, but no layer of {anatomy.model_type} can be skipped: "
            f"{anatomy.layers[0].stays}."
        )
    losses = layer_losses(scores, anatomy)
    skipped: set[str] = set()
    for module in sorted(anatomy.skippable, key=lambda one: losses[one]):
        stack = next(modules for modules in anatomy.stacks if module in modules)
        if len(skipped) < count and len(skipped.union([module]).intersection(stack)) < len(stack):
            skipped.add(module)
    if len(skipped) < count:
        raise PlanError(
            f"budget.layers={budget.layers:g} asks for {count} of {len(anatomy.skippable)} layers that can "
            f"be skipped, but one of each stack stays, so at most {len(skipped)} can. Cut a smaller share."
        )
    return frozenset(skipped)


def layer_losses(scores: Scores, anatomy: Anatomy) -> dict[str, float]:
    """What skipping each layer loses, by its module, on the scale of the scores of heads and neurons."""
    losses = dict.fromkeys(anatomy.modules, 0.0)
    for layer, loss in zip(anatomy.layers, scores.layer_losses(), strict=True):
        losses[layer.module] += loss
    return losses
