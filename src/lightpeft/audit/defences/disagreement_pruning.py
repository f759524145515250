"""Disagreement pruning: remove the units that put out something else than your own copy does, then train."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from lightpeft.audit.defences.defence import Defence, Received
from lightpeft.audit.defences.fine_pruning import least_active, trained_without, units_of
from lightpeft.audit.defences.retraining import trained_afresh
from lightpeft.audit.defences.thresholds import each_alone
from lightpeft.audit.errors import AuditError
from lightpeft.config import check_share


@dataclass(frozen=True)
class DisagreementPruning(Defence, name="disagreement_pruning", kind="weights", time="2 trainings"):
    """Remove the units that put out something else than the same module of your own copy, and train then.

    The copy is a fresh module of the same form that is trained on the user's rows first. Units are those of
    `fine_pruning`: ranks of LoRA, neurons of adapters. Unlike there a unit that sleeps on clean texts and one
    that is busy with something else go alike, since only directions are compared.
    """

    share: float = 0.5
    """Share of every module's units to remove, those of the lowest `agreement`. Rounded half up; one unit
    stays."""

    def __post_init__(self) -> None:
        check_share("disagreement_pruning.share", self.share)

    def train(self, received: Received) -> PeftModel:
        """The received module, pruned, and trained without the pruned units.

        Raises:
            AuditError: this form of PEFT has no units, nothing is held out, or the fresh module is of another
                form.
            AnatomyError: a form of PEFT that is not known.
        """
        units = units_of(received.model, self.name)
        found = agreement(received, trained_afresh(received), list(units))
        return trained_without(
            received, {name: least_active(scores, self.share) for name, scores in found.items()}
        )


def agreement(received: Received, copy: PeftModel, names: Sequence[str]) -> dict[str, Tensor]:
    """How far each unit puts out what the same module of a copy does, over all tokens of the held-out rows.

    Unit i of a module adds u_i(x) b_i, b_i a column of the linear that reads the units, and the copy's module
    adds y(x): Σ_x u_i(x) (b_i · y(x)) / √(Σ_x u_i(x)² ‖b_i‖²), which is the cosine of the two but for a
    factor that all units of a module share.

    Args:
        names: of the linears that read units, relative to the base.

    Returns:
        by name: (units,), float64; -inf for a unit that sleeps on all of these texts.

    Raises:
        AuditError: nothing is held out, or the copy has other modules.
    """
    if not len(received.held_out):
        raise AuditError(
            "disagreement_pruning compares units on held-out rows, and there are none; hold out more."
        )
    columns, others = (_weights(model, names) for model in (received.model, copy))
    cross = {name: torch.zeros(columns[name].shape[1], others[name].shape[1]).double() for name in names}
    squares = {name: torch.zeros(columns[name].shape[1]).double() for name in names}
    with _read(received.model, names) as ours, _read(copy, names) as theirs:
        # One text at a time: without padding, whose activations mean nothing.
        for row in each_alone(received.held_out.texts):
            for model in (received.model, copy):
                received.classifier(model).logits(row)
            for name in names:
                cross[name] += ours[name].T @ theirs[name]
                squares[name] += ours[name].square().sum(0)
    found = {}
    for name in names:
        along = (columns[name].T @ others[name] * cross[name]).sum(1)
        norms = squares[name].sqrt() * columns[name].norm(dim=0)
        found[name] = torch.where(norms > 0, along / norms, -torch.inf)
    return found


def _weights(model: PeftModel, names: Sequence[str]) -> dict[str, Tensor]:
    """Of each linear its weight, (d_out, units), float64 on the CPU."""
    inner = dict(model.get_base_model().named_modules())
    if missing := [name for name in names if name not in inner]:
        raise AuditError(
            f"the fresh module has no {missing[0]}; make it of the same form on the same base as the "
            "received one."
        )
    return {name: inner[name].get_parameter("weight").detach().double().cpu() for name in names}


@contextmanager
def _read(model: PeftModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What each linear read in the last forward pass, (tokens, units), float64 on the CPU."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del module
            # DoRA also sends an identity matrix through, to learn the norms of its weights.
            if inputs[0].dim() > 2:
                seen[name] = inputs[0].flatten(0, -2).double().cpu()

        return model.get_base_model().get_submodule(name).register_forward_pre_hook(keep)

    hooks = [note(name) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
