"""IA3: vectors on the inputs or outputs of linears. It has no ranks; the vectors follow a cut of the base."""

from typing import Any

import torch
from peft.tuners.ia3 import IA3Layer
from peft.tuners.ia3 import Linear as IA3Linear
from torch import Tensor
from transformers import PreTrainedModel

from lightpeft.adapters.view import Follower, Form
from lightpeft.edits import Journal
from lightpeft.errors import AnatomyError
from lightpeft.linears import is_plain_linear, matrix


class IA3Follower(Follower):
    """The vectors of all adapters on one linear: (1, d_in) on its inputs, or (d_out, 1) on its outputs."""

    def __init__(self, layer: IA3Linear) -> None:
        self._layer: Any = layer

    def keep_inputs(self, kept: Tensor, journal: Journal) -> None:
        """Follow a cut of the linear's inputs."""
        self._keep(1, kept, journal, on_inputs=True)
        journal.set_attribute(self._layer, "in_features", len(kept))

    def keep_outputs(self, kept: Tensor, journal: Journal) -> None:
        """Follow a cut of the linear's outputs."""
        self._keep(0, kept, journal, on_inputs=False)
        journal.set_attribute(self._layer, "out_features", len(kept))

    @torch.no_grad()
    def effect_of(self, adapter: str, inputs: Tensor) -> Tensor | None:
        """W · (l - 1) ⊙ inputs, where the vector is on the inputs."""
        if not self._layer.is_feedforward or adapter not in self._layer.ia3_l:
            return None
        change = self._layer.ia3_l[adapter].flatten().float() - 1
        effect: Tensor = matrix(self._layer.get_base_layer()).float() @ (change * inputs)
        return effect

    def _keep(self, dim: int, kept: Tensor, journal: Journal, *, on_inputs: bool) -> None:
        if self._layer.is_feedforward == on_inputs:
            for vector in self._layer.ia3_l.values():
                journal.slice(vector, dim, kept)


def _followers(base: PreTrainedModel) -> dict[str, Follower]:
    found: dict[str, Follower] = {}
    for name, layer in base.named_modules():
        if isinstance(layer, IA3Layer):
            inner = layer.get_base_layer()
            if not isinstance(layer, IA3Linear) or not is_plain_linear(inner):
                raise AnatomyError(
                    f"{name} carries IA3 on a {type(inner).__name__}; only IA3 on nn.Linear and Conv1D can "
                    "follow a cut. Leave it out of target_modules."
                )
            found[name] = IA3Follower(layer)
    return found


IA3 = Form("IA3", has_modules=False, followers=_followers)
