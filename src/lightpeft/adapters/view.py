"""What a form of PEFT looks like to estimation and surgery. A new form is one file that implements this."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lightpeft.edits import Journal
from lightpeft.linears import Projection

Note = Callable[[Tensor, Tensor], None]
"""Takes ‖ΔWx‖/‖Wx‖ per token, flat, and a tensor (..., channels) of the same tokens."""


@dataclass(frozen=True)
class PeftModule(ABC):
    """One PEFT module of the adapter that is estimated: scored, gated, and cut by ranks.

    The ranks are the input channels of one linear of it: of LoRA's B, or of a bottleneck's up projection,
    whose ranks are the neurons behind the non-linearity.
    """

    name: str
    """Name of the linear it sits on, relative to the base model."""

    layer: Any
    """PEFT's tuner layer."""

    adapter: str

    @property
    @abstractmethod
    def gated(self) -> str:
        """The module, relative to the base model, whose input channels are the ranks."""

    @property
    @abstractmethod
    def parameters(self) -> Sequence[Tensor]:
        """The trained weights."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """r, the number of ranks."""

    @property
    @abstractmethod
    def widths(self) -> tuple[int, int]:
        """Channels in and out, (d_in, d_out)."""

    @property
    def base_linear(self) -> Projection:
        """The frozen linear underneath."""
        base: Projection = self.layer.get_base_layer()
        return base

    @property
    def reader(self) -> nn.Module | None:
        """The trained module that reads the linear's inputs, after dropout, and keeps them for its backward
        pass; None where there is none in use, or it reads something else as well."""
        return None

    @property
    def is_linear(self) -> bool:
        """Whether its ranks can be folded into the linear; if not, their means stand for them."""
        return True

    @abstractmethod
    def measure(self, note: Note) -> list[RemovableHandle]:
        """Hooks that give `note` the module's share in every forward pass in training mode."""

    @abstractmethod
    def keep_ranks(self, kept: Tensor, journal: Journal) -> None:
        """Keep some ranks, each computing what it did."""

    @abstractmethod
    def remove(self, base: nn.Module, journal: Journal) -> None:
        """Take the module off its linear."""

    def constant(self) -> Tensor | None:
        """What the module puts out without any rank: its bias, (d_out,)."""
        return None

    def low_rank_pair(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """If linear: a copy of some ranks as weights, (d_out, k) and (k, d_in), `left @ right = ΔW`."""
        raise NotImplementedError(f"{type(self).__name__} is not linear.")

    def mean_output(self, means: Tensor, ranks: Tensor) -> Tensor:
        """If not linear: what some ranks put out at the mean (rank,) of their channels, (d_out,)."""
        raise NotImplementedError(f"{type(self).__name__} is linear.")

    def add_to_constant(self, shift: Tensor, journal: Journal) -> None:
        """If not linear: put out `shift` (d_out,) more."""
        raise NotImplementedError(f"{type(self).__name__} is linear.")


def token_norms(activations: Tensor) -> Tensor:
    """L2 norm over the channels of activations (..., channels), flat, in float32, without gradient."""
    norms: Tensor = torch.linalg.vector_norm(activations.detach().flatten(0, -2).float(), dim=-1)
    return norms


def share_of(part: Tensor, whole: Tensor) -> Tensor:
    """Norms of a part over norms of the whole, safe where the whole is 0."""
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)


class Follower(ABC):
    """A tuner layer with all of its adapters: what has to happen to them when their linear is cut."""

    fixed_outputs: str | None = None
    """Why no outputs of the linear can be cut under it."""

    @property
    def reads_weights(self) -> bool:
        """Whether what the layer computes hangs on the linear's weights, not only on what it puts out."""
        return False

    def prepare(self, kept_ranks: Mapping[str, Tensor]) -> None:
        """Look at the whole layer; of some adapters only these ranks will count."""
        del kept_ranks

    @abstractmethod
    def keep_inputs(self, kept: Tensor, journal: Journal) -> None:
        """Follow a cut of the linear's inputs."""

    @abstractmethod
    def keep_outputs(self, kept: Tensor, journal: Journal) -> None:
        """Follow a cut of the linear's outputs.

        Raises:
            AnatomyError: it cannot.
        """

    def scale_inputs(self, factors: Tensor, journal: Journal) -> None:
        """Multiply what reads the linear's inputs by `factors` (d_in,), as a gate before the linear did."""
        del factors, journal

    def finish(self, journal: Journal) -> None:
        """Called when the linear and the ranks have their final values."""
        del journal

    def effect_of(self, adapter: str, inputs: Tensor) -> Tensor | None:
        """What an adapter adds to the linear's output for the mean input (d_in,): (d_out,), float32; None if
        it does not read the linear's inputs."""
        del adapter, inputs
        return None

    def left_behind(self, adapter: str) -> Tensor | None:
        """What the linear's weight rows (d_out,) stay multiplied by when an adapter is gone."""
        del adapter
        return None


def _nothing_wrong(config: PeftConfig) -> str | None:
    del config
    return None


def _no_modules(model: PeftModel, adapter: str) -> tuple[PeftModule, ...]:
    del model, adapter
    return ()


def _no_followers(base: PreTrainedModel) -> dict[str, Follower]:
    del base
    return {}


def _as_it_is(model: PeftModel, adapter: str, modules: Sequence[PeftModule], journal: Journal) -> None:
    del model, adapter, modules, journal


@dataclass(frozen=True)
class Form:
    """How adapters of one PEFT type are scored and cut."""

    title: str
    """In words, for messages."""

    has_modules: bool = True
    """Whether modules and ranks can be cut, not only the base under them."""

    merges: bool = True
    """Whether PEFT can merge it into the base."""

    fixed_heads: str | None = None
    """Why no heads of the base can be cut under it."""

    no_resume: str | None = None
    """Why a run cannot be resumed from PEFT's files."""

    problem: Callable[[PeftConfig], str | None] = _nothing_wrong
    """What of a configuration cannot be cut, in words."""

    find: Callable[[PeftModel, str], tuple[PeftModule, ...]] = _no_modules
    """The modules of an adapter, in module order."""

    followers: Callable[[PreTrainedModel], dict[str, Follower]] = _no_followers
    """The tuner layers by the name of their linear."""

    describe: Callable[[PeftModel, str, Sequence[PeftModule], Journal], None] = _as_it_is
    """Make an adapter's configuration say exactly which modules are left, so that PEFT rebuilds them."""
