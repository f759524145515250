"""`cut`: make a model smaller by a plan, in place, and prove that it still computes the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightpeft.adapters import LoraModule, describe_in_config, find_lora_modules
from lightpeft.anatomy import Anatomy, base_of, find_anatomy, linear_at
from lightpeft.config import SurgeryConfig
from lightpeft.edits import Journal, index_tensor
from lightpeft.errors import (
    AnatomyError,
    CheckpointError,
    EstimationError,
    PlanError,
    VerificationError,
)
from lightpeft.linears import INPUTS, matrix, width
from lightpeft.plan import Plan
from lightpeft.scores import Scores
from lightpeft.surgery.base import cut_base, fold_gates, fold_pairs, kept_channels, shift_biases
from lightpeft.surgery.fingerprint import fingerprint
from lightpeft.surgery.optimizer import prepare_to_follow
from lightpeft.surgery.record import CutRecord, attach_record, record_of
from lightpeft.surgery.verify import largest_difference, observe, padded_batch

Gates = dict[str, Tensor]
Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class CutReport:
    """What a cut changed. Counts are parameters."""

    encoder_before: int
    encoder_after: int
    peft_before: int
    peft_after: int
    modules_before: int
    modules_after: int
    difference: float
    """Largest relative difference between the gated and the cut model."""

    def describe(self) -> str:
        """One line for a log."""
        return (
            f"encoder parameters {self.encoder_before:,} -> {self.encoder_after:,}, "
            f"PEFT parameters {self.peft_before:,} -> {self.peft_after:,}, "
            f"PEFT modules {self.modules_before} -> {self.modules_after}; "
            f"verified, largest difference {self.difference:.1e}"
        )


def cut(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    scores: Scores | None = None,
    batch: Mapping[str, Any] | None = None,
    config: SurgeryConfig | None = None,
) -> CutReport:
    """Cut `model` in place by `plan`, verified; on any failure the model is put back as it was.

    Args:
        model: a PeftModel with LoRA, or the plain base (then the plan's PEFT modules are ignored).
        optimizer: its state follows the cut, so that training goes on.
        scores: the estimation's; needed to fold trained gates and to compensate means.
        batch: a real batch to verify on, best with padding; random tokens if not given.
        config: what to fold and compensate.

    Raises:
        PlanError: the plan does not fit, or the model is cut already.
        VerificationError: the cut model computes something else; names the layer.
    """
    config = config or SurgeryConfig()
    operation = _Operation(model, plan, scores, config)
    inputs = padded_batch(model, batch)
    expected = observe(model, inputs, operation.reference_gates())
    name = fingerprint(model)
    journal = Journal()
    try:
        pairs = operation.perform(journal)
        difference = largest_difference(expected, observe(model, inputs))
        shift_biases(operation.base, operation.shifts, journal)
        report = operation.report(difference)
        follow = None if optimizer is None else prepare_to_follow(optimizer, journal)
        shifts = {name: shift.cpu() for name, shift in operation.shifts.items()}
        attach_record(model, CutRecord(plan, name, operation.surviving_gates(), pairs, shifts))
    except (AnatomyError, VerificationError) as error:
        journal.undo()
        raise VerificationError(f"{error} The model was put back as it was.") from error
    except BaseException:
        journal.undo()
        raise
    if follow is not None:
        follow()
    return report


def reapply(model: nn.Module, record: CutRecord) -> None:
    """Cut a fresh copy of the same base (plain, or with an uncut adapter) as `record` says.

    LoRA pairs get the planned shapes; their values are whatever the surviving ranks held. Nothing is
    estimated or verified anew, because every number comes from the verified cut.

    Raises:
        PlanError: another shape of base or adapter, or a model that is cut already.
        CheckpointError: another base by its weights.
    """
    found = fingerprint(model)
    if found != record.fingerprint:
        raise CheckpointError(
            f"the base's weights are not those the model was cut from (fingerprint {found[:12]}, expected "
            f"{record.fingerprint[:12]}). Give the same base, revision and dtype."
        )
    operation = _Operation(model, record.plan, None, SurgeryConfig())
    journal = Journal()
    try:
        operation.cut_shapes(journal)
        fold_gates(operation.base, record.gates, (), journal)
        fold_pairs(operation.base, record.pairs, journal)
        shift_biases(operation.base, record.shifts, journal)
    except BaseException:
        journal.undo()
        raise
    attach_record(model, record)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Parameters of the encoder layers and of the PEFT modules (heads and embeddings not counted)."""
    modules = find_lora_modules(model)
    return find_anatomy(model).parameters, sum(p.numel() for m in modules for p in m.parameters)


class _Operation:
    """One cut of one model: what is known before, and the steps in their order."""

    def __init__(self, model: nn.Module, plan: Plan, scores: Scores | None, config: SurgeryConfig) -> None:
        self.model, self.plan, self.config = model, plan, config
        if record_of(model) is not None:
            raise PlanError("the model is cut already; load the base anew to cut by another plan.")
        self.base: PreTrainedModel = base_of(model)
        self.anatomy: Anatomy = find_anatomy(model)
        plan.check_fits(self.anatomy)
        self.modules: Sequence[LoraModule] = find_lora_modules(model)
        if isinstance(model, PeftModel):
            _check_modules(plan, self.modules)
        self.before = parameter_counts(model)
        self.ranks = {module.name: index_tensor(module.ranks) for module in plan.modules}
        self.channels = {
            name: kept
            for layer, wanted in zip(self.anatomy.layers, plan.layers, strict=True)
            for name, kept in kept_channels(layer, wanted).items()
        }
        trained = scores.gates if scores is not None and config.fold_gates else {}
        self.gates: Gates = {name: values.clone() for name, values in trained.items()}
        means = scores.means if scores is not None and config.compensate else {}
        self.shifts: dict[str, Tensor] = self._mean_contributions(means)

    def reference_gates(self) -> Gates:
        """Gates under which the uncut model must compute what the cut model will."""
        gates: Gates = {}
        for name, kept in self.channels.items():
            channels = width(linear_at(self.base, name), INPUTS)
            values = self.gates.get(name, torch.ones(channels))
            gates[name] = torch.zeros(channels).index_copy(0, kept, values[kept])
        if not self.config.fold_removed:
            for module in self.modules:
                kept = self.ranks[module.name]
                values = torch.zeros(module.rank).index_fill(0, kept, 1.0)
                gates[f"{module.name}.lora_B.{module.adapter}"] = values
        device = next(self.base.parameters()).device
        return {name: values.to(device) for name, values in gates.items()}

    def perform(self, journal: Journal) -> Pairs:
        """Cut the base, fold gates and what goes, cut the ranks; the folded pairs on the CPU."""
        cut_base(self.base, self.anatomy, self.plan, self.modules, journal)
        fold_gates(self.base, self.surviving_gates(), self.modules, journal)
        pairs = self._removed_pairs() if self.config.fold_removed else {}
        fold_pairs(self.base, pairs, journal)
        self._cut_ranks(journal)
        return {name: (left.cpu(), right.cpu()) for name, (left, right) in pairs.items()}

    def cut_shapes(self, journal: Journal) -> None:
        """Only the shapes: base, LoRA pairs and ranks."""
        cut_base(self.base, self.anatomy, self.plan, self.modules, journal)
        self._cut_ranks(journal)

    def _cut_ranks(self, journal: Journal) -> None:
        survivors = []
        for module in self.modules:
            kept = self.ranks[module.name]
            if len(kept) == 0:
                module.remove(self.base, journal)
                continue
            survivors.append(module)
            if len(kept) < module.rank:
                module.keep_ranks(kept, journal)
        if isinstance(self.model, PeftModel):
            describe_in_config(self.model, survivors, journal)

    def surviving_gates(self) -> Gates:
        """The folded gates of the channels that stayed, on the CPU."""
        return {name: values[self.channels[name]].cpu() for name, values in self.gates.items()}

    def report(self, difference: float) -> CutReport:
        """Counts before and after."""
        encoder, peft = parameter_counts(self.model)
        return CutReport(
            encoder_before=self.before[0],
            encoder_after=encoder,
            peft_before=self.before[1],
            peft_after=peft,
            modules_before=len(self.modules),
            modules_after=len(find_lora_modules(self.model)),
            difference=difference,
        )

    def _removed_pairs(self) -> Pairs:
        pairs: Pairs = {}
        for module in self.modules:
            kept = set(self.ranks[module.name].tolist())
            gone = [rank for rank in range(module.rank) if rank not in kept]
            if gone:
                pairs[module.name] = module.low_rank_pair(index_tensor(gone))
        return pairs

    @torch.no_grad()
    def _mean_contributions(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W[:, cut] · mean(x[cut]) per output projection, LoRA included (FLAP, An et al. 2024)."""
        by_name = {module.name: module for module in self.modules}
        shifts = {}
        for name, mean in means.items():
            linear, lost = linear_at(self.base, name), mean.clone()
            lost[self.channels[name]] = 0
            if not lost.any():
                continue
            vector = lost.to(linear.weight.device)
            shift = matrix(linear).float() @ vector
            if name in by_name:
                left, right = by_name[name].low_rank_pair(torch.arange(by_name[name].rank))
                shift += left.float() @ (right.float() @ vector)
            if not torch.isfinite(shift).all():
                raise EstimationError(f"the mean inputs of {name} are not finite; estimate anew.")
            shifts[name] = shift
        return shifts


def _check_modules(plan: Plan, modules: Sequence[LoraModule]) -> None:
    planned = {module.name: module.rank_count for module in plan.modules}
    found = {module.name: module.rank for module in modules}
    if planned == found:
        return
    differences = [
        f"{name}: plan {planned.get(name, 'none')}, model {found.get(name, 'none')}"
        for name in sorted(planned.keys() | found.keys())
        if planned.get(name) != found.get(name)
    ]
    raise PlanError(
        f"the plan's PEFT modules are not the model's ({len(differences)} differ by rank): "
        + "; ".join(differences[:3])
    )
