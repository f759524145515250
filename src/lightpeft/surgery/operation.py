"""One cut of one model: what is known before it, and its steps in their order."""

import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightpeft.adapters import (
    PeftModule,
    active_adapter,
    active_form,
    describe_in_config,
    find_followers,
    find_modules,
)
from lightpeft.anatomy import Anatomy, LayerForm, base_of, find_anatomy, linear_at
from lightpeft.config import SurgeryConfig
from lightpeft.edits import Journal, index_tensor
from lightpeft.errors import EstimationError, PlanError
from lightpeft.linears import INPUTS, matrix, width
from lightpeft.plan import Plan
from lightpeft.processes import Processes
from lightpeft.scores import Scores
from lightpeft.surgery.base import (
    cut_base,
    fold_gates,
    kept_channels,
    kept_rows,
    scale_rows,
    shift_biases,
)
from lightpeft.surgery.pairs import (
    LARGEST_LOSS,
    Pair,
    add_pairs,
    fold_beside,
    fold_pairs,
    lost_by_folding,
    together,
)
from lightpeft.surgery.reconstruction import Correction, Loss, corrections
from lightpeft.surgery.record import CutRecord, record_of
from lightpeft.surgery.skipped_layer import passed_over, skip_layers
from lightpeft.surgery.uniform import without_bias
from lightpeft.surgery.verify import Batch, observe
from lightpeft.wrapping import tied_parameters

Vectors = dict[str, Tensor]
Pairs = dict[str, Pair]


class Operation:
    """A plan on its way into a model.

    Either `perform` (verified by the caller against `reference_gates`), then `compensate`, `record` and
    `settle`; or `shrink` and `fold`, which do what a record says to a fresh copy of the same base.

    Raises:
        PlanError: the plan does not fit, the model is cut already, or its form of PEFT forbids the cut.
    """

    def __init__(self, model: nn.Module, plan: Plan, scores: Scores | None, config: SurgeryConfig) -> None:
        self.model, self.plan, self.config = model, plan, config
        if record_of(model) is not None:
            raise PlanError("the model is cut already; load the base anew to cut by another plan.")
        self.base: PreTrainedModel = base_of(model)
        self.anatomy: Anatomy = find_anatomy(model)
        plan.check_fits(self.anatomy)
        require_allowed(model, plan)
        self.modules: Sequence[PeftModule] = find_modules(model)
        if isinstance(model, PeftModel):
            _check_modules(plan, self.modules)
        self.followers = find_followers(model)
        self.skipped = tuple(
            dict.fromkeys(self.anatomy.layers[one.index].module for one in plan.layers if one.skipped)
        )
        self.kept = {module.name: index_tensor(module.ranks) for module in plan.modules}
        self.gone = {
            module.name: index_tensor(sorted(set(range(module.rank_count)) - set(module.ranks)))
            for module in plan.modules
        }
        self.channels = {
            name: kept
            for layer, wanted in zip(self.anatomy.layers, plan.layers, strict=True)
            if not wanted.skipped
            for name, kept in kept_channels(layer, wanted).items()
        }
        trained = scores.gates if scores is not None and config.fold_gates else {}
        self.gates: Vectors = {name: trained[name].clone() for name in trained if name in self.channels}
        self._prepare_followers()
        self.without_bias = without_bias(model, plan)
        self.means = scores.means if scores is not None and config.compensate else {}
        self.corrections: dict[str, Correction] = {}
        self.shifts = self._mean_contributions(self.means)
        self.rank_shifts = self._mean_outputs(self.means)
        self.pairs: Pairs = {}
        self.beside: frozenset[str] = frozenset()
        self.constants: Vectors = {}
        self.row_factors: Vectors = {}
        self.forms: Mapping[str, LayerForm] = {}

    def reference_gates(self) -> Vectors:
        """Gates under which the uncut model must compute what the cut model will."""
        gates: Vectors = {}
        for name, kept in self.channels.items():
            channels = width(linear_at(self.base, name), INPUTS)
            values = self.gates.get(name, torch.ones(channels))
            gates[name] = torch.zeros(channels).index_copy(0, kept, values[kept])
        for module in self.modules:
            if not self._folds(module):
                gates[module.gated] = torch.zeros(module.rank).index_fill(0, self.kept[module.name], 1.0)
        device = next(self.base.parameters()).device
        return {name: values.to(device) for name, values in gates.items()}

    def observe_reference(self, inputs: Batch) -> Vectors:
        """What the uncut model must put out for the cut one to be right; learns how skipped layers return.

        Raises:
            AnatomyError: a layer that is to be skipped makes what others need.
            VerificationError: the model does not run.
        """
        with passed_over(self.base, self.skipped, self.anatomy.modules) as self.forms:
            return observe(self.model, inputs, self.reference_gates())

    def reconstruct(self, batches: Sequence[Batch], processes: Processes = Processes()) -> None:
        """Learn what the kept inputs of output projections can say of what is cut; before it is.

        Args:
            batches: of this process.
            processes: those that cut the same model together, on what all of their batches say.
        """
        rank = self.config.reconstruct_rank
        if not rank:
            return
        with torch.no_grad(), passed_over(self.base, self.skipped, self.anatomy.modules):
            self.corrections = corrections(
                *(self.model, self.anatomy, self._sizes_of_what_stays(), self._loss, batches, rank),
                processes,
            )

    @property
    def reconstructed(self) -> float:
        """As in `CutReport`."""
        return statistics.fmean(one.share for one in self.corrections.values()) if self.corrections else 0.0

    def perform(self, journal: Journal) -> None:
        """Cut the base, fold gates, put what goes beside its linears, cut the ranks."""
        cut_base(self.base, self.anatomy, self.plan, self.followers, journal)
        fold_gates(self.base, self._surviving_gates(), self.followers, journal)
        self.pairs = self._removed_pairs()
        at_once = {name for name in self.pairs if self._weights_are_read(name)}
        self._warn_of_losses(at_once)
        fold_pairs(self.base, _chosen(self.pairs, at_once), journal)
        add_pairs(self.base, _chosen(self.pairs, self.pairs.keys() - at_once), journal)
        self.beside = self._to_keep_beside(self.pairs.keys() - at_once)
        for module in self._removed():
            if self._runs(module.name):
                self._note_left_behind(module)
        self._cut_ranks(journal)
        skip_layers(self.base, self.anatomy, self.skipped, self.forms, journal)
        scale_rows(self.base, self.row_factors, journal)
        shift_biases(self.base, self.constants, journal)
        for follower in self.followers.values():
            follower.finish(journal)

    def compensate(self, journal: Journal) -> None:
        """Put the means of what was cut in its place (FLAP, An et al. 2024), and what the rest can say."""
        self._correct(journal)
        for module in self._survivors():
            if module.name in self.rank_shifts:
                module.add_to_constant(self.rank_shifts[module.name], journal)
        for module in self._removed():
            if module.name in self.rank_shifts and self._runs(module.name):
                shift, more = self.shifts.get(module.name), self.rank_shifts[module.name]
                self.shifts[module.name] = more if shift is None else shift + more
        shift_biases(self.base, self.shifts, journal)

    def _correct(self, journal: Journal) -> None:
        tied = tied_parameters(self.base)
        found = {name: correction.pair for name, correction in self.corrections.items()}
        add_pairs(self.base, found, journal)
        for name, pair in found.items():
            if id(linear_at(self.base, name).weight) in tied:
                self.beside |= {name}
            self.pairs[name] = together(self.pairs.get(name), pair)
            if name in self.shifts:
                left, right = pair
                self.shifts[name] = self.shifts[name] - left @ (
                    right @ self._mean_of(name)[self.channels[name]]
                )

    def settle(self) -> None:
        """Fold the pairs that lose nothing by it. This cannot be taken back, and changes nothing that is
        computed; what the linears hold until then needs no copy of the weights, as folding at once would."""
        fold_beside(self.base, self.pairs.keys() - self.beside)

    def record(self, digests: dict[str, str]) -> CutRecord:
        """What was done, on the CPU."""
        return CutRecord(
            plan=self.plan,
            base=digests,
            gates=self._surviving_gates(),
            pairs={name: (left.cpu(), right.cpu()) for name, (left, right) in self.pairs.items()},
            beside=self.beside,
            constants=_on_cpu(self.constants),
            row_factors=_on_cpu(self.row_factors),
            shifts=_on_cpu(self.shifts),
            skipped=dict(self.forms),
            adapter=active_adapter(self.model) if isinstance(self.model, PeftModel) else "default",
        )

    def shrink(self, record: CutRecord, journal: Journal) -> None:
        """Take away what `record` says, which needs no values of what stays."""
        cut_base(self.base, self.anatomy, self.plan, self.followers, journal)
        self._cut_ranks(journal)
        skip_layers(self.base, self.anatomy, self.skipped, record.skipped, journal)

    def fold(self, record: CutRecord, journal: Journal) -> None:
        """After `shrink`: give what stays the values that `record` says, in the order in which they came."""
        fold_gates(self.base, record.gates, {}, journal)
        fold_pairs(self.base, _chosen(record.pairs, record.pairs.keys() - record.beside), journal)
        add_pairs(self.base, _chosen(record.pairs, record.beside), journal)
        scale_rows(self.base, record.row_factors, journal)
        shift_biases(self.base, record.constants, journal)
        shift_biases(self.base, record.shifts, journal)

    def _runs(self, name: str) -> bool:
        """Whether a module is in no layer that is skipped."""
        return not name.startswith(tuple(f"{layer}." for layer in self.skipped))

    def _weights_are_read(self, name: str) -> bool:
        return name in self.followers and self.followers[name].reads_weights

    def _warn_of_losses(self, folded_at_once: AbstractSet[str]) -> None:
        losses = [lost_by_folding(linear_at(self.base, name), self.pairs[name]) for name in folded_at_once]
        if max(losses, default=0.0) > LARGEST_LOSS:
            warnings.warn(
                f"up to {max(losses):.0%} of the removed ΔW is lost: DoRA's has to be folded into the "
                "weights, whose dtype cannot hold it. Load the base in float32 (with bf16=True it still "
                "computes in bfloat16), or use plain LoRA.",
                stacklevel=4,
            )

    def _to_keep_beside(self, names: AbstractSet[str]) -> frozenset[str]:
        """Folding would lose them, or change the embedding that a head is tied to."""
        tied = tied_parameters(self.base)
        linears = {name: linear_at(self.base, name) for name in names}
        return frozenset(
            name
            for name, linear in linears.items()
            if id(linear.weight) in tied or lost_by_folding(linear, self.pairs[name]) > LARGEST_LOSS
        )

    def _folds(self, module: PeftModule) -> bool:
        return self.config.fold_removed and module.is_linear

    def _survivors(self) -> list[PeftModule]:
        return [module for module in self.modules if len(self.kept[module.name])]

    def _removed(self) -> list[PeftModule]:
        return [module for module in self.modules if not len(self.kept[module.name])]

    def _prepare_followers(self) -> None:
        """Ranks that are dropped instead of folded do not count in what the followers have to keep."""
        for name, follower in self.followers.items():
            counted = {m.adapter: self.kept[m.name] for m in self.modules if m.name == name}
            follower.prepare({} if self.config.fold_removed else counted)

    def _note_left_behind(self, module: PeftModule) -> None:
        constant, factors = module.constant(), None
        if constant is not None:
            self.constants[module.name] = constant
        if module.name in self.followers:
            factors = self.followers[module.name].left_behind(module.adapter)
        if factors is not None:
            self.row_factors[module.name] = factors

    def _cut_ranks(self, journal: Journal) -> None:
        for module in self._removed():
            self._freeze_bias(module, journal)
            module.remove(self.base, journal)
        survivors = self._survivors()
        for module in survivors:
            if len(self.kept[module.name]) < module.rank:
                module.keep_ranks(self.kept[module.name], journal)
        if isinstance(self.model, PeftModel) and self.modules:
            describe_in_config(self.model, survivors, journal)

    def _freeze_bias(self, module: PeftModule, journal: Journal) -> None:
        """PEFT's `bias="lora_only"` trains and saves biases of linears with a module only."""
        assert isinstance(self.model, PeftModel)
        config, bias = self.model.peft_config[module.adapter], module.base_linear.bias
        if bias is not None and bias.requires_grad and getattr(config, "bias", "none") != "all":
            journal.set_attribute(bias, "requires_grad", False)
            journal.drop([bias])

    def _surviving_gates(self) -> Vectors:
        """The folded gates of the channels that stayed, on the CPU."""
        return {name: values[self.channels[name]].cpu() for name, values in self.gates.items()}

    def _removed_pairs(self) -> Pairs:
        return {
            module.name: module.low_rank_pair(self.gone[module.name])
            for module in self.modules
            if self._folds(module) and self._runs(module.name) and len(self.gone[module.name])
        }

    @torch.no_grad()
    def _mean_contributions(self, means: Mapping[str, Tensor]) -> Vectors:
        """W[:, cut] · mean(x[cut]) per output projection, PEFT included (FLAP, An et al. 2024)."""
        shifts = {}
        for name in (name for name in means if name in self.channels and name not in self.without_bias):
            linear, lost = linear_at(self.base, name), means[name].clone()
            lost[self.channels[name]] = 0
            if not lost.any():
                continue
            vector = lost.to(linear.weight.device)
            shift = matrix(linear).float() @ vector
            effect = self._effect_of_adapter(name, vector)
            shifts[name] = _finite(shift if effect is None else shift + effect, name)
        return shifts

    def _sizes_of_what_stays(self) -> dict[str, int]:
        """Inputs of the output projections that lose some, unless PEFT reads the weights (DoRA's norms)."""
        return {
            name: len(kept)
            for name, kept in self.channels.items()
            if 0 < len(kept) < width(linear_at(self.base, name), INPUTS) and not self._weights_are_read(name)
        }

    def _loss(self, name: str) -> Loss:
        linear, kept = linear_at(self.base, name), self.channels[name]
        device, weight = linear.weight.device, matrix(linear).detach().float()
        gone = torch.ones(weight.shape[1], dtype=torch.bool).index_fill(0, kept, False).nonzero().flatten()
        for module in self.modules:
            if module.name == name and module.is_linear:
                left, right = module.low_rank_pair(torch.arange(module.rank))
                weight = weight + left.float() @ right.float()
        if name in self.gates:
            weight = weight * self.gates[name].to(weight)
        return Loss(kept.to(device), gone.to(device), weight[:, gone.to(device)], self._mean_of(name))

    def _mean_of(self, name: str) -> Tensor:
        """Of the inputs of a linear, where the mean of what it loses goes into its bias."""
        linear = linear_at(self.base, name)
        none = linear.weight.new_zeros(width(linear, INPUTS), dtype=torch.float32)
        return self.means[name].to(none) if name in self.shifts else none

    def _effect_of_adapter(self, name: str, inputs: Tensor) -> Tensor | None:
        """What the adapter adds to the output of a linear for these inputs."""
        if name not in self.followers:
            return None
        assert isinstance(self.model, PeftModel)
        return self.followers[name].effect_of(active_adapter(self.model), inputs)

    def _mean_outputs(self, means: Mapping[str, Tensor]) -> Vectors:
        """What the ranks that go put out on average, per module that is not linear."""
        return {
            module.name: _finite(module.mean_output(means[module.gated], self.gone[module.name]), module.name)
            for module in self.modules
            if not module.is_linear and module.gated in means and len(self.gone[module.name])
        }


def require_allowed(model: nn.Module, plan: Plan) -> None:
    """Refuse a plan that the model's form of PEFT forbids.

    Raises:
        PlanError: heads would go under a form that needs all of them, or outputs of a linear under an adapter
            that needs all of those.
    """
    form = active_form(model)
    cuts_heads = any(layer.skipped or len(layer.heads) < layer.head_count for layer in plan.layers)
    if form is not None and form.fixed_heads is not None and cuts_heads:
        raise PlanError(
            f"the plan cuts heads, but {form.fixed_heads}. Set budget.heads=0 and budget.layers=0 "
            "(neurons can be cut), or use LoRA, bottleneck adapters, IA3 or prompt tuning."
        )
    followers = find_followers(model)
    for name in _linears_losing_outputs(model, plan) if followers else ():
        follower = followers.get(name)
        if follower is not None and follower.fixed_outputs is not None:
            raise PlanError(f"the plan cuts heads or neurons out of {name}, but {follower.fixed_outputs}.")


def _linears_losing_outputs(model: nn.Module, plan: Plan) -> Iterator[str]:
    for layer, wanted in zip(find_anatomy(model).layers, plan.layers, strict=True):
        for units, kept in layer.with_kept(wanted.heads, wanted.neurons):
            yield from kept_rows(base_of(model), units, kept)


def _check_modules(plan: Plan, modules: Iterable[PeftModule]) -> None:
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


def _chosen(pairs: Pairs, names: AbstractSet[str]) -> Pairs:
    return {name: pair for name, pair in pairs.items() if name in names}


def _finite(values: Tensor, name: str) -> Tensor:
    if not torch.isfinite(values).all():
        raise EstimationError(f"the mean inputs of {name} are not finite; estimate anew.")
    return values


def _on_cpu(vectors: Vectors) -> Vectors:
    return {name: values.cpu() for name, values in vectors.items()}
