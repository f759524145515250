"""`cut`: make a model smaller by a plan, in place, and prove that it still computes the same."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn

from lightpeft.adapters import active_adapter, adapter_parameters, find_modules
from lightpeft.anatomy import base_of, find_anatomy
from lightpeft.config import SurgeryConfig
from lightpeft.edits import Journal, Shrinking
from lightpeft.errors import AnatomyError, CheckpointError, PlanError, VerificationError
from lightpeft.linears import is_quantised
from lightpeft.plan import Plan
from lightpeft.processes import Processes, require_whole
from lightpeft.scores import Scores
from lightpeft.surgery.fingerprint import Digests, base_digests, other_tensors
from lightpeft.surgery.first_token import can_narrow
from lightpeft.surgery.operation import Operation
from lightpeft.surgery.optimizer import prepare_to_follow
from lightpeft.surgery.record import CutRecord, attach_record
from lightpeft.surgery.reference import keep_adapters_on
from lightpeft.surgery.verify import labelled, largest_difference, narrowest_dtype, observe, padded_batch


@dataclass(frozen=True)
class Counts:
    """Parameters of the encoder layers and of the adapter, and its modules that can be cut."""

    encoder: int
    peft: int
    modules: int

    @classmethod
    def of(cls, model: nn.Module) -> "Counts":
        """Count."""
        peft = sum(parameter.numel() for parameter in adapter_parameters(model))
        return cls(find_anatomy(model).parameters, peft, len(find_modules(model)))


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
    beside: int = 0
    """Linears whose removed ΔW is added to what they put out, because folding would lose it or
    change what is tied to them."""
    reconstructed: float = 0.0
    """Of what was cut, beyond its mean, the share of the square that what stays says on batches held back;
    the mean over the output projections where anything was reconstructed."""

    @classmethod
    def of(
        cls, before: Counts, after: Counts, difference: float, beside: int, reconstructed: float
    ) -> "CutReport":
        """From counts before and after."""
        return cls(
            *(before.encoder, after.encoder),
            *(before.peft, after.peft),
            *(before.modules, after.modules),
            difference,
            beside,
            reconstructed,
        )

    def describe(self) -> str:
        """One line for a log."""
        kept = (
            f"; the removed ΔW of {self.beside} linears stays beside them in float32, as folding would lose "
            "part of it or change what is tied to them"
        )
        again = (
            f"; what stays says {self.reconstructed:.0%} of what went, beyond its mean, at the output "
            "projections (on batches held back)"
        )
        return (
            f"encoder parameters {self.encoder_before:,} -> {self.encoder_after:,}, "
            f"PEFT parameters {self.peft_before:,} -> {self.peft_after:,}, "
            f"PEFT modules {self.modules_before} -> {self.modules_after}; "
            f"verified, largest difference {self.difference:.1e}{kept if self.beside else ''}"
            f"{again if self.reconstructed else ''}"
        )


def cut(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    scores: Scores | None = None,
    batch: Mapping[str, Any] | None = None,
    batches: Sequence[Mapping[str, Any]] = (),
    config: SurgeryConfig | None = None,
    processes: Processes = Processes(),
) -> CutReport:
    """Cut `model` in place by `plan`, verified; on any failure the model is put back as it was.

    Args:
        model: a PeftModel, or the plain base (then the plan's PEFT modules are ignored).
        optimizer: its state follows the cut, so that training goes on.
        scores: the estimation's; needed to fold trained gates and to compensate means.
        batch: a real batch to verify on, best with padding; random tokens if not given.
        batches: real ones, as the base takes them, to reconstruct on what is cut from what stays
            (`config.reconstruct_rank`); two at least, eight are plenty. Without them its mean alone is kept.
        config: what to fold and compensate.
        processes: those that cut the same model together, each verified on a batch of its own; where one
            of them fails, all put theirs back.

    Raises:
        PlanError: the plan does not fit, or the model is cut already.
        VerificationError: the cut model computes something else; names the layer.
        ConfigError: the optimizer does not survive a cut, or the model is in parts on several processes.
    """
    require_whole(model, "it cannot be cut")
    _require_floats(model)
    with processes.agreed():
        operation = Operation(model, plan, scores, config or SurgeryConfig())
        before = Counts.of(model)
        inputs = padded_batch(model, batch)
        expected = operation.observe_reference(inputs)
        narrowest = narrowest_dtype(operation.base)
        digests = base_digests(model)
    operation.reconstruct(batches, processes)
    journal = Journal()
    try:
        with processes.agreed():
            operation.perform(journal)
            difference = largest_difference(expected, observe(model, inputs), narrowest)
            operation.compensate(journal)
            report = CutReport.of(
                *(before, Counts.of(model), difference, len(operation.beside), operation.reconstructed)
            )
            follow = None if optimizer is None else prepare_to_follow(optimizer, journal)
            narrows = operation.config.first_token and can_narrow(
                model, labelled(inputs, batch), operation.skipped
            )
        record = dataclasses.replace(operation.record(digests), first_token=processes.shared(narrows))
        attach_record(model, record)
        keep_adapters_on(operation.base)
    except (AnatomyError, VerificationError) as error:
        journal.undo()
        raise VerificationError(f"{error} The model was put back as it was.") from error
    except BaseException:
        journal.undo()
        raise
    if follow is not None:
        follow()
    operation.settle()
    torch.clear_autocast_cache()  # an autocast around this call holds casts of the uncut weights
    return report


class Unread(Protocol):
    """Where the weights of a base are that were not read yet."""

    def fill(self, weight: Tensor) -> None:
        """Read the values of one, unless they were."""

    def digests(self) -> Digests:
        """`base_digests` of the base as its files give it; whatever was not read yet is read."""


def reapply(model: nn.Module, record: CutRecord, unread: Unread | None = None) -> None:
    """Cut a fresh copy of the same base (plain, or with an uncut adapter) as `record` says.

    PEFT modules get the planned shapes; their values are whatever the surviving ranks held. Nothing is
    estimated or verified anew, because every number comes from the verified cut.

    Args:
        unread: of a base without values. They are read weight by weight, and of each only what stays is kept;
            after an error the base is of no use.

    Raises:
        PlanError: another shape of base or adapter, or a model that is cut already.
        CheckpointError: another base by its weights.
    """
    _require_floats(model)
    if unread is None:
        _require_same_base(record, base_digests(model))
    operation = Operation(model, record.plan, None, SurgeryConfig())
    journal = Journal() if unread is None else Shrinking(unread.fill)
    try:
        operation.shrink(record, journal)
        if unread is not None:
            _require_same_base(record, unread.digests())
        operation.fold(record, journal)
    except BaseException:
        journal.undo()
        raise
    adapter = active_adapter(model) if isinstance(model, PeftModel) else record.adapter
    attach_record(model, dataclasses.replace(record, adapter=adapter))
    keep_adapters_on(operation.base)


def _require_floats(model: nn.Module) -> None:
    for name, module in base_of(model).named_modules():
        if is_quantised(module):
            raise PlanError(
                f"{name} is quantised ({type(module.weight).__name__}), and cutting that would round it a "
                "second time. LightCallback and `lightpeft train` cut the floats and quantise them again. "
                "By hand: estimate on the quantised base, cut the same model on a base of floats, save it, "
                "and go on with lightpeft.load(folder, quantization_config=..., is_trainable=True)."
            )


def _require_same_base(record: CutRecord, found: Digests) -> None:
    odd = other_tensors(record.base, found, record.own)
    if odd:
        raise CheckpointError(
            f"the base is not the one that the model was cut from: {len(odd)} of {len(record.base)} weights "
            f"differ, {odd[0]} first. Give the same base, in the same revision and dtype."
        )


def reshape(model: nn.Module, record: CutRecord) -> None:
    """Give a model of the same configuration the shapes of a cut one; its weights mean nothing afterwards.

    Raises:
        PlanError: another shape of base, or a model that is cut already.
    """
    Operation(model, record.plan, None, SurgeryConfig()).shrink(record, Shrinking(lambda _: None))
    attach_record(model, record)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Parameters of the encoder layers and of the adapter (heads and embeddings not counted)."""
    counts = Counts.of(model)
    return counts.encoder, counts.peft
