"""The estimator: puts gates into a model, gathers statistics step by step, and turns them into scores."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightpeft.adapters import PeftModule, find_modules
from lightpeft.anatomy import Anatomy, base_of, find_anatomy
from lightpeft.config import EstimationConfig
from lightpeft.errors import CheckpointError, EstimationError
from lightpeft.estimation.activations import (
    TokenWeights,
    measure_contributions,
    measure_mean_inputs,
)
from lightpeft.estimation.baselines import baseline_scores
from lightpeft.estimation.gates import Gate, Mask, Probe, spread
from lightpeft.estimation.sites import Site, find_sites
from lightpeft.estimation.statistics import Block, BlockSums
from lightpeft.scores import Scores


class Estimator:
    """Gathers importance while a model trains.

    Call `attach()` before the first step and `end_step()` after each step's backward passes (all
    micro-batches of it) and before gradients are zeroed; then `scores()` and `detach()`.

    Gates are no parameters of the model: clipping, weight decay and `state_dict` never see them. So their
    gradients are those of the whole, unclipped step; only the loss scale has to be taken out.
    """

    def __init__(self, model: nn.Module, config: EstimationConfig) -> None:
        self.config, self.steps = config, 0
        self._base = base_of(model)
        self.anatomy: Anatomy = find_anatomy(model)
        self.modules: tuple[PeftModule, ...] = find_modules(model)
        device = next(self._base.parameters()).device
        self._sites = find_sites(self.anatomy, self.modules)
        self._gates = [self._make_gate(site, device) for site in self._sites]
        self._sums = BlockSums(self._sizes(), device)
        self._handles: list[RemovableHandle] = []
        self.last_batch: dict[str, Any] | None = None
        """Keyword arguments of the model's last training forward."""
        trained = [gate.values for gate in self._gates if isinstance(gate, Mask)]
        self._gate_optimizer = torch.optim.AdamW(trained, weight_decay=0.0) if trained else None

    def attach(self) -> None:
        """Put the hooks in, once."""
        self.detach()
        tokens = TokenWeights(self._base, self.anatomy)
        note = self._base.register_forward_pre_hook(self._note_batch, with_kwargs=True)
        self._handles = [*tokens.handles, note]
        for site, gate in zip(self._sites, self._gates, strict=True):
            module = self._base.get_submodule(site.module)
            self._handles.append(module.register_forward_pre_hook(gate))
        self._handles += measure_mean_inputs(self._base, self._averaged_sites, self._sums, tokens)
        self._handles += measure_contributions(self.modules, self._sums, tokens)

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
        finite = torch.isfinite(grads).all()
        grads = torch.where(finite, grads, 0.0)
        per_module = grads[self._rank_start :].new_zeros(len(self.modules))
        per_module.index_add_(0, self._rank_owners, grads[self._rank_start :])
        block = self._sums.current
        block["gate_sum"] += grads
        block["gate_square"] += grads.square()
        block["module_square"] += per_module.square()
        block["finite_steps"] += finite
        block["steps"] += 1
        if self._gate_optimizer is not None:
            self._train_gates(grads, finite, learning_rate)
        self.steps += 1
        if self._is_boundary(self.steps):
            self._sums.open(self.steps)

    def scores(self) -> Scores:
        """Scores over the second half of the steps so far (trained gates: their values now).

        Raises:
            EstimationError: no step was taken, or nothing finite was gathered.
        """
        if self.steps == 0:
            raise EstimationError("no training step was estimated; scores need at least one.")
        window = {name: values.cpu() for name, values in self._window().items()}
        self._check_finite(window)
        heads, neurons = self._base_scores(window)
        return Scores(
            heads=heads,
            neurons=neurons,
            ranks={m.name: self._rank_scores(window, i, m) for i, m in enumerate(self.modules)},
            modules={m.name: self._module_score(window, i) for i, m in enumerate(self.modules)},
            steps=self.steps,
            methods={
                "base": self.config.base_score,
                "module": self.config.module_score,
                "rank": self.config.rank_score,
            },
            gates=self._trained_gates(),
            means=self._mean_inputs(window),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on later, as tensors and JSON values."""
        tensors = self._sums.to_tensors()
        for position, gate in enumerate(self._gates):
            if self._gate_optimizer is not None and isinstance(gate, Mask):
                tensors[f"gate.{position}"] = gate.values
                moments = self._gate_optimizer.state.get(gate.values, {})
                tensors |= {f"moment.{position}.{key}": value for key, value in moments.items()}
        return tensors, {"steps": self.steps, "starts": self._sums.starts}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            CheckpointError: the state is of another model or configuration.
        """
        try:
            self.steps = header["steps"]
            self._sums.restore(header["starts"], tensors)
            for position, gate in enumerate(self._gates):
                if self._gate_optimizer is not None and isinstance(gate, Mask):
                    gate.values.copy_(tensors[f"gate.{position}"])
                    start = f"moment.{position}."
                    self._gate_optimizer.state[gate.values] = {
                        key.removeprefix(start): value
                        for key, value in tensors.items()
                        if key.startswith(start)
                    }
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the saved estimation does not fit this model and configuration: {error}."
            ) from error

    @property
    def _base_sites(self) -> list[Site]:
        return [site for site in self._sites if site.kind != "ranks"]

    @property
    def _averaged_sites(self) -> list[Site]:
        return [site for site in self._sites if site.averaged]

    def _note_batch(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if module.training:
            self.last_batch = {k: v for k, v in kwargs.items() if isinstance(v, Tensor)}

    def _make_gate(self, site: Site, device: torch.device) -> Gate:
        if self.config.base_score == "mask" and site.kind != "ranks":
            return Mask(torch.ones(site.units, device=device, requires_grad=True))
        return Probe(site.units, device)

    def _sizes(self) -> dict[str, int]:
        base_sites, modules = self._base_sites, self.modules
        units = self._sites[-1].stop
        self._rank_start = base_sites[-1].stop
        owners = [s.owner for s in self._sites if s.kind == "ranks" for _ in range(s.units)]
        device = next(self._base.parameters()).device
        self._rank_owners = torch.tensor(owners, dtype=torch.int64, device=device)
        averaged = self._averaged_sites
        return {
            "gate_sum": units,
            "gate_square": units,
            "module_square": len(modules),
            "finite_steps": 1,
            "steps": 1,
            "input_sum": sum(site.channels for site in averaged),
            "input_count": len(averaged),
            "ratio_sum": len(modules),
            "ratio_count": len(modules),
        }

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

    def _is_boundary(self, step: int) -> bool:
        if self.config.steps == "auto":
            return step % self.config.interval == 0
        return step == self.config.steps // 2

    def _window(self) -> Block:
        if self.config.steps == "auto":
            return self._sums.window(self.steps // 2, self.steps)
        return self._sums.window(self.config.steps // 2, self.steps)

    def _check_finite(self, window: Block) -> None:
        steps, finite = int(window["steps"]), int(window["finite_steps"])
        if finite == 0:
            raise EstimationError(
                f"none of {steps} estimation steps had finite gradients: the run has diverged. Lower "
                "the learning rate, or train in bfloat16 instead of float16."
            )

    def _base_scores(self, window: Block) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        method = self.config.base_score
        if method in ("magnitude", "random"):
            return baseline_scores(self._base, self.anatomy, method, self.config.seed)
        if method == "mask":
            values = [gate.values.detach().abs().cpu() for gate in self._gates]
        else:
            flat = _per_gate(window, method)
            values = [flat[site.span] for site in self._sites]
        heads = [torch.zeros(0) for _ in self.anatomy.layers]
        neurons = [torch.zeros(0) for _ in self.anatomy.layers]
        for site, value in zip(self._sites, values, strict=True):
            if site.kind != "ranks":
                (heads if site.kind == "heads" else neurons)[site.owner] = value
        return tuple(heads), tuple(neurons)

    def _rank_scores(self, window: Block, position: int, module: PeftModule) -> Tensor:
        site = self._sites[len(self._base_sites) + position]
        if self.config.rank_score == "fisher":
            return _per_gate(window, "fisher")[site.span]
        taylor = _per_gate(window, "taylor")[site.span]
        if self.config.rank_score == "paper":
            taylor = taylor * sum(1 / width for width in module.widths)
        return taylor

    def _module_score(self, window: Block, position: int) -> float:
        steps = window["finite_steps"]
        if self.config.module_score == "activation":
            return float(window["ratio_sum"][position] / window["ratio_count"][position].clamp(1))
        if self.config.module_score == "fisher":
            return float(window["module_square"][position] / steps)
        site = self._sites[len(self._base_sites) + position]
        return float(window["gate_sum"][site.span].sum().abs() / steps)

    def _trained_gates(self) -> dict[str, Tensor]:
        return {
            site.module: spread(gate.values.detach().cpu(), site.channels)
            for site, gate in zip(self._sites, self._gates, strict=True)
            if isinstance(gate, Mask)
        }

    def _mean_inputs(self, window: Block) -> dict[str, Tensor]:
        averaged = self._averaged_sites
        sums = window["input_sum"].split([site.channels for site in averaged])
        return {
            site.module: total / count.clamp(1)
            for site, total, count in zip(averaged, sums, window["input_count"], strict=True)
        }


def _per_gate(window: Block, method: str) -> Tensor:
    steps = window["finite_steps"]
    return window["gate_square"] / steps if method == "fisher" else window["gate_sum"].abs() / steps
