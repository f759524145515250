"""The parameters of a received module beside those of a fresh one of the same form on the same base."""

from collections.abc import Iterable, Iterator

import torch
from peft import PeftModel
from torch import nn

from lightpeft.audit.errors import AuditError
from lightpeft.audit.policies.layers import LayerGroup


def counterparts(
    groups: Iterable[LayerGroup], fresh: PeftModel
) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Each trained parameter of some layers, and the one of the same name in `fresh`.

    Raises:
        AuditError: `fresh` has none of that name, or of another shape.
    """
    named = dict(fresh.named_parameters())
    for group in groups:
        for name, parameter in group.parameters.items():
            other = named.get(name)
            if other is None or other.shape != parameter.shape:
                found = "no such parameter" if other is None else f"one of the shape {tuple(other.shape)}"
                raise AuditError(
                    f"the received module trains {name} {tuple(parameter.shape)}, and the fresh one has "
                    f"{found}; make the fresh module of the same form and sizes on the same base."
                )
            yield parameter, other


@torch.no_grad()
def reset(groups: Iterable[LayerGroup], fresh: PeftModel) -> None:
    """Give the trained parameters of some layers the values that they have in `fresh`.

    Raises:
        AuditError: see `counterparts`; nothing was changed.
    """
    for parameter, other in list(counterparts(groups, fresh)):
        parameter.copy_(other)
