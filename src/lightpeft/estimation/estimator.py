"""The estimator: puts gates into a model, gathers statistics step by step, and turns them into scores."""

import dataclasses
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightpeft.adapters import PeftModule, find_modules
from lightpeft.anatomy import Anatomy, base_of, find_anatomy
from lightpeft.config import EstimationConfig
from lightpeft.errors import CheckpointError, EstimationError
from lightpeft.estimation.activations import (
    TokenWeights,
    measure_contributions,
    measure_hidden_states,
    measure_inputs,
    measure_similarities,
)
from lightpeft.estimation.gates import Gate, Mask, Probe, spread
from lightpeft.estimation.readout import Readout
from lightpeft.estimation.sites import Site, find_sites
from lightpeft.estimation.statistics import WindowSums
from lightpeft.files import under
from lightpeft.processes import Processes
from lightpeft.score_tables import GRADIENT_STATISTICS
from lightpeft.scores import Scores

_BATCH = "batch"
"""What the kept batches are under, in the state."""


class Removable(Protocol):
    """What a hook's handle can do."""

    def remove(self) -> None:
        """Undo it."""


class Estimator:
    """Gathers importance while a model trains.

    Call `attach()` before the first step and `end_step()` after each step's backward passes (all
    micro-batches of it) and before gradients are zeroed; then `scores()` and `detach()`.

    Gates are no parameters of the model: clipping, weight decay and `state_dict` never see them. So their
    gradients are those of the whole, unclipped step; only the loss scale has to be taken out.
    """

    def __init__(
        self,
        model: nn.Module,
        config: EstimationConfig,
        keep_batches: int = 1,
        processes: Processes = Processes(),
    ) -> None:
        """Find the places of the gates.

        Args:
            keep_batches: how many of the latest batches are kept, for what is done at the cut.
            processes: those that train this model together. The gates' gradients are averaged over them, as
                DDP does with the parameters', so that all of them find the scores of the whole batch.
        """
        self.config = config
        self._processes = processes
        self._base = base_of(model)
        self.anatomy: Anatomy = find_anatomy(model)
        self.modules: tuple[PeftModule, ...] = find_modules(model)
        self._device = next(self._base.parameters()).device
        self._sites = find_sites(self.anatomy, self.modules)
        base_sites = [site for site in self._sites if site.kind != "ranks"]
        self._rank_start = base_sites[-1].stop
        self._rank_owners = self._owners_of_ranks()
        self._readout = Readout(self._base, self.anatomy, self.modules, base_sites, config)
        self._gates = [self._make_gate(site) for site in self._sites]
        self._sums = WindowSums(
            self._sizes(),
            start=config.window_start,
            device=self._device,
            processes=processes,
            own=self._measured_sizes(),
        )
        self._handles: list[Removable] = []
        self.batches: deque[dict[str, Tensor]] = deque(maxlen=keep_batches)
        """Arguments of the base's latest training forwards, by name; the last one is the latest."""
        trained = [gate.values for gate in self._gates if isinstance(gate, Mask)]
        self._gate_optimizer = torch.optim.AdamW(trained, weight_decay=0.0) if trained else None

    @property
    def steps(self) -> int:
        """Optimizer steps that were taken."""
        return self._sums.steps

    def attach(self, is_over: Callable[[], bool] | None = None) -> None:
        """Put the hooks in, once.

        Args:
            is_over: whether the training ended without `detach`. Asked where the model, or its part without a
                head, is about to be used or read; then the hooks take themselves out first.
        """
        self.detach()
        tokens = TokenWeights(self._base, self.anatomy)
        note = self._base.register_forward_pre_hook(self._note_batch, with_kwargs=True)
        self._handles = [*tokens.handles, note]
        for site, gate in zip(self._sites, self._gates, strict=True):
            if self._is_needed(site):
                module = self._base.get_submodule(site.module)
                self._handles += gate.attach(module)
        fluctuates = self._readout.needs_fluctuations
        self._handles += measure_inputs(
            self._base, self._averaged_sites, self._sums, tokens, squares=fluctuates
        )
        if fluctuates:
            self._handles += measure_hidden_states(self._base, self.anatomy.modules, self._sums, tokens)
        if self._readout.needs_shares:
            self._handles += measure_contributions(self.modules, self._sums, tokens)
        if self._readout.needs_similarities:
            self._handles += measure_similarities(self._base, self.anatomy.modules, self._sums, tokens)
        if is_over is not None:
            self._watch(is_over)

    def keep(self, handle: Removable) -> None:
        """Take the hook of somebody else, or whatever else has a `remove`, out together with the own ones."""
        self._handles.append(handle)

    def detach(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def end_step(self, learning_rate: float, loss_scale: Tensor | float = 1.0) -> None:
        """Take in the gate gradients of one optimizer step.

        Args:
            learning_rate: the run's, used for trained gates unless the configuration sets another.
            loss_scale: what the loss was multiplied by (float16 training).
        """
        grads = torch.cat([self._take_grad(gate) for gate in self._gates]) / loss_scale
        grads = self._processes.average(grads)
        finite = torch.isfinite(grads).all()
        grads = torch.where(finite, grads, 0.0)
        of_base, of_ranks = grads[: self._rank_start], grads[self._rank_start :]
        of_modules = grads.new_zeros(len(self.modules)).index_add_(0, self._rank_owners, of_ranks)
        gradients = {"base": of_base, "modules": of_modules, "ranks": of_ranks}
        for kind, names in self._readout.gradients.items():
            for name in names:
                self._sums.current(f"{kind}.{name}").add_(GRADIENT_STATISTICS[name](gradients[kind]))
        self._sums.current("finite_steps").add_(finite)
        if self._gate_optimizer is not None:
            self._train_gates(grads, finite, learning_rate)
        self._sums.end_step()

    def scores(self, *, halves: bool = True) -> Scores:
        """Scores over the steps that count (trained gates: their values now).

        These are the ones of `estimation.window`; before the first of them is over, all that were taken.

        Args:
            halves: also score the window's even and odd steps on their own.

        Raises:
            EstimationError: no step was taken, or nothing finite was gathered.
        """
        if self.steps == 0:
            raise EstimationError("no training step was estimated; scores need at least one.")
        window = self._sums.window()
        means = self._mean_inputs(window["input_sum"].sum(0), window["input_count"].sum(0))
        _check_finite(window["finite_steps"], self._sums.counted)
        gates = {
            site.module: gate.values.detach().cpu()
            for site, gate in zip(self._sites, self._gates, strict=True)
        }
        scores = self._readout.scores(window, gates, self.steps, halves)
        return dataclasses.replace(scores, gates=self._trained_gates(), means=means)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on later, as tensors and JSON values."""
        tensors, header = self._sums.state()
        for position, gate in enumerate(self._gates):
            if self._gate_optimizer is not None and isinstance(gate, Mask):
                tensors[f"gate.{position}"] = gate.values
                moments = self._gate_optimizer.state.get(gate.values, {})
                tensors |= {f"moment.{position}.{key}": value for key, value in moments.items()}
        own = [{name: value.cpu().clone() for name, value in batch.items()} for batch in self._lasting()]
        for index, batches in enumerate(self._processes.gathered(own)):
            for position, batch in enumerate(batches):
                tensors |= {f"{_batch_of(index)}.{position}.{name}": one for name, one in batch.items()}
        return tensors, header

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            CheckpointError: the state is of another model or configuration.
        """
        try:
            self._sums.restore(tensors, header["steps"])
            for position, gate in enumerate(self._gates):
                if self._gate_optimizer is not None and isinstance(gate, Mask):
                    gate.values.copy_(tensors[f"gate.{position}"])
                    start = f"moment.{position}."
                    self._gate_optimizer.state[gate.values] = {
                        key.removeprefix(start): value
                        for key, value in tensors.items()
                        if key.startswith(start)
                    }
            self._restore_batches(under(tensors, _batch_of(self._processes.index)))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the saved estimation does not fit this model and configuration: {error}."
            ) from error

    def _lasting(self) -> list[dict[str, Tensor]]:
        """The kept batches that the next one does not take the place of."""
        kept = list(self.batches)
        return kept[1:] if len(kept) == self.batches.maxlen else kept

    def _restore_batches(self, tensors: dict[str, Tensor]) -> None:
        """In their order: the position comes first in a name."""
        batches: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            position, _, name = key.partition(".")
            batches.setdefault(int(position), {})[name] = value.to(self._device)
        self.batches.extend(batch for _, batch in sorted(batches.items()))

    def _watch(self, is_over: Callable[[], bool]) -> None:
        """Last, because torch asks how to call a hook only when its turn has come."""

        def leave_if_over(*_: Any) -> None:
            if is_over():
                self.detach()

        for module in {self._base, self._base.base_model}:
            self._handles.append(module.register_forward_pre_hook(leave_if_over))
        self._handles.append(self._base.register_state_dict_pre_hook(leave_if_over))

    @property
    def _averaged_sites(self) -> list[Site]:
        return [site for site in self._sites if site.averaged]

    def _note_batch(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if module.training:
            given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
            self.batches.append(
                {name: value.detach() for name, value in given.items() if isinstance(value, Tensor)}
            )

    def _make_gate(self, site: Site) -> Gate:
        if self._readout.of_base.trains_gates and site.kind != "ranks":
            return Mask(torch.ones(site.units, device=self._device, requires_grad=True))
        on_it = next((module for module in self.modules if module.name == site.module), None)
        return Probe(site.units, self._device, lambda: None if on_it is None else on_it.reader)

    def _is_needed(self, site: Site) -> bool:
        """Whether the gradients of its gates are used."""
        wanted = self._readout.gradients
        if site.kind == "ranks":
            return bool(wanted["ranks"] or wanted["modules"])
        return bool(wanted["base"]) or self._readout.of_base.trains_gates

    def _owners_of_ranks(self) -> Tensor:
        """For each rank the position of its module."""
        ranks = torch.tensor([module.rank for module in self.modules], dtype=torch.int64)
        return torch.arange(len(ranks)).repeat_interleave(ranks).to(self._device)

    def _sizes(self) -> dict[str, int]:
        units = {
            "base": self._rank_start,
            "modules": len(self.modules),
            "ranks": self._sites[-1].stop - self._rank_start,
        }
        sizes = {
            f"{kind}.{name}": units[kind] for kind, names in self._readout.gradients.items() for name in names
        }
        return sizes | {"finite_steps": 1} | self._measured_sizes()

    def _measured_sizes(self) -> dict[str, int]:
        """Of what is summed in the forward pass."""
        sizes: dict[str, int] = {}
        if self._readout.needs_shares:
            sizes |= {"share_sum": len(self.modules), "share_count": len(self.modules)}
        layers = len(self.anatomy.modules)
        if self._readout.needs_similarities:
            sizes |= {"similarity_sum": layers, "similarity_count": layers}
        averaged = self._averaged_sites
        channels = sum(site.channels for site in averaged)
        if self._readout.needs_fluctuations:
            sizes |= {"input_square": channels, "hidden_square": layers, "hidden_count": layers}
        return sizes | {"input_sum": channels, "input_count": len(averaged)}

    def _take_grad(self, gate: Gate) -> Tensor:
        grad, gate.values.grad = gate.values.grad, None
        return torch.zeros_like(gate.values) if grad is None else grad

    def _train_gates(self, grads: Tensor, finite: Tensor, learning_rate: float) -> None:
        assert self._gate_optimizer is not None
        trained: list[Tensor] = self._gate_optimizer.param_groups[0]["params"]
        before = [values.clone() for values in trained]
        for site, gate in zip(self._sites, self._gates, strict=True):
            if isinstance(gate, Mask):
                gate.values.grad = grads[site.span] + self.config.l1 * gate.values.sign()
        chosen = self.config.gate_learning_rate
        self._gate_optimizer.param_groups[0]["lr"] = learning_rate if chosen is None else chosen
        self._gate_optimizer.step()
        self._gate_optimizer.zero_grad()
        for now, old in zip(trained, before, strict=True):
            now.copy_(torch.where(finite, now, old))

    def _trained_gates(self) -> dict[str, Tensor]:
        return {
            site.module: spread(gate.values.detach().cpu(), site.channels)
            for site, gate in zip(self._sites, self._gates, strict=True)
            if isinstance(gate, Mask)
        }

    def _mean_inputs(self, sums: Tensor, counts: Tensor) -> dict[str, Tensor]:
        averaged = self._averaged_sites
        per_site = sums.split([site.channels for site in averaged])
        return {
            site.module: total / count.clamp(1)
            for site, total, count in zip(averaged, per_site, counts, strict=True)
        }


def _batch_of(process: int) -> str:
    return f"{_BATCH}_of_{process}" if process else _BATCH


def _check_finite(finite_steps: Tensor, steps: int) -> None:
    if not finite_steps.any():
        raise EstimationError(
            f"none of {steps} estimation steps had finite gradients: the run has diverged. Lower "
            "the learning rate, or train in bfloat16 instead of float16."
        )
