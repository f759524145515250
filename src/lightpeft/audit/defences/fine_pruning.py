"""Fine-pruning (Liu et al. 2018): remove the units that clean texts hardly use, then train."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from lightpeft.adapters import find_modules
from lightpeft.audit.defences.defence import Defence, Received
from lightpeft.audit.errors import AuditError
from lightpeft.config import check_share, exact_count


@dataclass(frozen=True)
class FinePruning(Defence, name="fine_pruning", kind="weights", source="Liu et al. 2018"):
    """A backdoor may live in units that sleep on clean texts, so these go before the user trains.

    Units are the channels behind a PEFT module's bottleneck: neurons of an adapter, behind the non-linearity,
    or ranks of LoRA, A x. They are ranked inside each module, since modules differ in scale. Heads and
    neurons of the frozen base are clean, and stay; `light_cutting` cuts those too.
    """

    share: float = 0.5
    """Share of every module's units to remove: those with the lowest mean absolute activation over all tokens
    of the held-out rows. Rounded half up; one unit stays."""

    def __post_init__(self) -> None:
        check_share("fine_pruning.share", self.share)

    def train(self, received: Received) -> PeftModel:
        """The received module, pruned, and trained without the pruned units.

        Raises:
            AuditError: this form of PEFT has no units.
            AnatomyError: a form of PEFT that is not known.
        """
        return trained_without(
            received, {name: least_active(units, self.share) for name, units in activity(received).items()}
        )


def units_of(model: PeftModel, defence: str) -> dict[str, int]:
    """The linears whose input channels are the units of PEFT modules (relative to the base), and how many.

    Raises:
        AuditError: this form of PEFT has no units; names the defence.
        AnatomyError: a form of PEFT that is not known.
    """
    modules = find_modules(model)
    if not modules:
        raise AuditError(
            f"{defence} removes ranks or neurons of PEFT modules, and this form has none; choose another "
            "defence."
        )
    return {module.gated: module.rank for module in modules}


def trained_without(received: Received, removed: Mapping[str, Tensor]) -> PeftModel:
    """The received module, trained without some units.

    Args:
        removed: by the linear that reads them, their indices.
    """
    base = received.model.get_base_model()
    with ExitStack() as stack:
        for name, units in removed.items():
            stack.enter_context(_held_at_zero(base.get_submodule(name), units))
        return received.fit(received.model)


def activity(received: Received) -> dict[str, Tensor]:
    """Absolute activations of every unit, summed over all tokens of the held-out rows, special ones too.

    Returns:
        by the linear whose input channels the units are (relative to the base): (units,), float64.

    Raises:
        AuditError: this form of PEFT has no units.
    """
    units = units_of(received.model, FinePruning.name)
    sums = {name: torch.zeros(count, dtype=torch.float64) for name, count in units.items()}
    base = received.model.get_base_model()
    hooks = [base.get_submodule(name).register_forward_pre_hook(_add_to(one)) for name, one in sums.items()]
    try:
        # One text at a time: without padding, whose activations mean nothing.
        dataclasses.replace(received.classifier(received.model), batch_size=1).logits(received.held_out.texts)
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def least_active(units: Tensor, share: float) -> Tensor:
    """Indices of the share of the units (units,) with the lowest values; never all of them."""
    count = min(exact_count(share, len(units)), len(units) - 1)
    return units.argsort(stable=True)[:count]


def _add_to(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del module
        # DoRA also sends an identity matrix through, to learn the norms of its weights.
        if inputs[0].dim() > 2:
            total.add_(inputs[0].abs().flatten(0, -2).double().sum(0).cpu())

    return note


@contextmanager
def _held_at_zero(linear: nn.Module, channels: Tensor) -> Iterator[None]:
    """A linear that does not read some input channels, nor learns to.

    With these columns of its weight (d_out, units) at 0 nothing comes out, and what feeds them gets no
    gradient; without a gradient AdamW leaves a 0 as it is.
    """
    weight = linear.weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight[:, channels] = 0
    hook = weight.register_hook(lambda gradient: gradient.index_fill(1, channels.to(gradient.device), 0))
    try:
        yield
    finally:
        hook.remove()
