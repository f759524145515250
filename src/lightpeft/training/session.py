"""One light run as a state machine, driven by a Trainer's events: estimate, cut, go on."""

import dataclasses
import gc
import logging
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightpeft.adapters import PeftModule, active_adapter, active_form, find_modules, limits_of_form
from lightpeft.anatomy import Anatomy, base_of, lowest_stack
from lightpeft.checkpoint import (
    PRUNING,
    differences,
    load,
    origin_of,
    own_tensors,
    quantisation_of,
    read_record,
    require_same_outputs,
    restore_tensors,
    write_cut,
)
from lightpeft.config import EstimationConfig, LightConfig
from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.estimation import Estimator
from lightpeft.files import read_tensors, under, write_tensors
from lightpeft.plan import Plan
from lightpeft.planning import Pricing, limits, make_plan
from lightpeft.processes import Processes
from lightpeft.scores import Scores
from lightpeft.surgery import (
    BATCHES,
    CutReport,
    StepGuard,
    base_digests,
    other_tensors,
    padded_batch,
    record_of,
    require_allowed,
    verify_discovered,
    without_bias,
)
from lightpeft.training.compiling import NothingCompiled
from lightpeft.training.live_run import LiveRun
from lightpeft.training.prefix import Ahead, FrozenPrefix, freeze_prefix
from lightpeft.training.quantised import cut_again, cut_in_run, require_cuttable
from lightpeft.training.targeting import Pace, Targeting
from lightpeft.wrapping import require_peft_model

ESTIMATION = "estimation.safetensors"
SCORES = "scores.safetensors"
_REST = "rest"

logger = logging.getLogger(__name__)


class LightSession:
    """Phases of one run: `estimating` until the cut, `cut` after it."""

    def __init__(self, config: LightConfig) -> None:
        self.config = config
        self.scores: Scores | None = None
        self.plan: Plan | None = None
        self.report: CutReport | None = None
        self.cut_step: int | None = None
        self._estimator: Estimator | None = None
        self._bar: tqdm[Any] | None = None
        self._guard: StepGuard | None = None
        self._prefix: FrozenPrefix | None = None
        self._targeting: Targeting | None = None
        self._processes = Processes()
        self._resumed: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._proof: dict[str, Any] | None = None
        self._proved = self._begun = False

    @property
    def phase(self) -> str:
        """`estimating`, or `cut` once the plan was carried out."""
        return "estimating" if self.plan is None else "cut"

    def begin(
        self,
        model: nn.Module,
        total_steps: int,
        show_progress: bool,
        pace: Pace | None = None,
        first_step: int = 0,
        processes: Processes = Processes(),
    ) -> None:
        """Check the whole run before it starts, then put the gates in.

        Args:
            pace: how the run goes over its data; a target needs to know.
            first_step: optimizer steps that were taken before, of a run that is resumed.
            processes: those that train this model together.

        Raises:
            ConfigError, PlanError, AnatomyError: what was asked for cannot be done in this run.
        """
        self._begun, self._processes = True, processes
        if self.plan is not None:
            logger.warning("the model is cut already: this run trains it on, and estimates nothing")
            return
        if record_of(model) is not None:
            raise ConfigError(
                "the model was cut in an earlier run, and a model is cut once. To train it on, leave "
                "lightpeft's callback out (any Trainer saves it as a light checkpoint); to cut more, start "
                "from the base with a larger budget; to resume a run, start from a fresh model."
            )
        self.end()
        estimation = self._estimation_in(total_steps)
        if self.config.target.is_set:
            assert pace is not None
            device = next(model.parameters()).device
            self._targeting = Targeting(self.config, pace, total_steps, first_step, device, processes)
        self.check(model, total_steps)
        require_cuttable(require_peft_model(model), processes)
        origin_of(model)  # says now what a checkpoint of this run could not be loaded without
        kept = BATCHES if self.config.surgery.reconstruct_rank else 1
        self._estimator = Estimator(model, estimation, kept, processes)
        if self._resumed is not None:
            tensors, header = self._resumed
            self._estimator.restore(tensors, header)
            self._resumed = None
        self._estimator.attach(LiveRun().is_over)
        if self._targeting is not None:
            self._targeting.watch(model)
        assert isinstance(model, PeftModel)  # as `check` has found
        self._guard = StepGuard(model, active_adapter(model))
        self._estimator.keep(self._guard.handle)
        self._estimator.keep(NothingCompiled())
        self._bar = tqdm(
            total=estimation.planned_steps,
            initial=self._estimator.steps,
            desc="lightpeft: estimating",
            disable=not show_progress,
        )

    def _estimation_in(self, total_steps: int) -> EstimationConfig:
        """With its number of steps; a resumed run keeps the one that it began with."""
        planned = self.config.estimation.in_run(total_steps)
        if self._resumed is None:
            return planned
        steps: Any = self._resumed[1].get("planned_steps")  # checked like a user's
        return dataclasses.replace(planned, steps=steps)

    def can_begin_with(self, model: nn.Module) -> bool:
        """Whether it was not begun yet, or cut `model` itself, so that another run trains it on."""
        record = record_of(model)
        return not self._begun or (record is not None and record.plan is self.plan)

    def check(self, model: nn.Module, total_steps: int) -> None:
        """Fail now if the budget or the number of steps is impossible."""
        anatomy = verify_discovered(model)
        steps = self._estimation_in(total_steps).planned_steps
        if total_steps < 2:
            raise ConfigError(
                "the run has only one step, which estimation takes, so nothing would be trained after the "
                "cut; train longer."
            )
        if steps >= total_steps:
            raise ConfigError(
                f"estimation.steps is {steps}, but the run has only {total_steps} steps, so nothing would "
                f"be trained after the cut. Train longer, or set estimation.steps below {total_steps} or "
                "to auto."
            )
        modules = find_modules(require_peft_model(model))
        for limit in [*limits(anatomy, self.config.budget), *limits_of_form(model)]:
            logger.info("%s", limit)
        pricing = None if self._targeting is None else self._targeting.trial(steps)
        trial = make_plan(_flat_scores(anatomy, modules), anatomy, self.config.budget, target=pricing)
        require_allowed(model, trial)
        if self.config.budget.uniform:
            _require_mergeable(model)
        if self._targeting is None:
            self._say_what_is_not_compensated(model, trial)
        if trial.cuts_nothing:
            warnings.warn(
                "this budget cuts nothing: the run is plain PEFT with the cost of estimation on top.",
                stacklevel=2,
            )

    def _say_what_is_not_compensated(self, model: nn.Module, plan: Plan) -> None:
        """Of a model that is not cut yet."""
        places = without_bias(model, plan) if self.config.surgery.compensate else ()
        if places:
            logger.info(
                "the means of what is cut are not compensated at %d output projections, %s first: an "
                "ordinary checkpoint of this plan has no biases there",
                len(places),
                min(places),
            )

    def begin_step(self) -> None:
        """From here to `end_backward` the model computes as it is trained, not as a reference."""
        if self._targeting is not None:
            self._targeting.begin_step()
        if self._guard is not None:
            self._guard.inside = True

    def end_backward(self, learning_rate: float, loss_scale: Tensor | float) -> None:
        """Take in the gradients of one whole step."""
        if self._targeting is not None:
            self._targeting.end_backward()
        if self._guard is not None:
            self._guard.inside = False
        if self._estimator is not None:
            self._estimator.end_step(learning_rate, loss_scale)
            if self._bar is not None:
                self._bar.update()

    def end_step(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, step: int) -> bool:
        """After an optimizer step: cut if estimation is done. True if this step cut."""
        has_cut = self._cut_if_done(model, optimizer, step)
        if self._targeting is not None:
            self._targeting.end_step()
        return has_cut

    def _cut_if_done(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, step: int) -> bool:
        estimator = self._estimator
        if estimator is None or estimator.steps < estimator.config.planned_steps:
            return False
        self.scores = self._processes.shared(estimator.scores())
        batches = tuple(estimator.batches)
        batch = self._proof = batches[-1]
        self._take_gates_out()
        targeting = self._targeting
        self.plan = self._processes.decided(lambda: self._make_plan(model, estimator.anatomy, batch, step))
        self.end()
        if targeting is not None:
            self._say_what_is_not_compensated(model, self.plan)
        self.report = cut_in_run(
            require_peft_model(model),
            self.plan,
            optimizer,
            scores=self.scores,
            batch=batch,
            batches=batches,
            config=self.config.surgery,
            processes=self._processes,
        )
        self.cut_step = step
        logger.info("step %d, cut: %s", step, self.report.describe())
        _say_what_it_rests_on(self.plan)
        if targeting is not None and self.plan.target is not None:
            targeting.say_after_cut(model, batch, self.plan.target)
        _free_memory()
        return True

    def _make_plan(self, model: nn.Module, anatomy: Anatomy, batch: dict[str, Any], step: int) -> Plan:
        """Of the scores there are; for a target with what is measured in this process."""
        assert self.scores is not None
        pricing: Pricing | None = None
        if self._targeting is not None:
            pricing = self._targeting.pricing(model, batch, step)
        return make_plan(self.scores, anatomy, self.config.budget, pays=_can_freeze(model), target=pricing)

    @property
    def measured(self) -> float | None:
        """Share of plain PEFT's cost that was found, where there is a target; of a whole run at its end."""
        return None if self._targeting is None else self._targeting.measured

    def finish(self) -> None:
        """Training is over: say what it took."""
        if self._targeting is not None and self.plan is not None and self.plan.target is not None:
            self._targeting.say_at_end(self.plan.target)
        self.end()

    def freeze(self, model: nn.Module, ahead: Ahead) -> None:
        """From here on run the layers that nothing trains apart from the others; only after the cut."""
        if self.plan is not None and self._prefix is None:
            self._prefix = freeze_prefix(model, self.config.prefix, ahead, LiveRun().is_over)

    def end(self) -> None:
        """Take the gates out, give the frozen layers back, and close the progress bar."""
        if self._prefix is not None:
            self._prefix.remove()
            self._prefix = None
        if self._bar is not None:
            self._bar.set_description(f"lightpeft: {self.phase}")
            self._bar.close()
            self._bar = None
        self._take_gates_out()

    def _take_gates_out(self) -> None:
        if self._estimator is not None:
            self._estimator.detach()
            self._estimator = self._guard = None

    def save(self, model: nn.Module, checkpoint: Path, *, writes: bool = True) -> None:
        """Add to a Trainer's checkpoint what is needed to resume from it; called by all processes.

        Args:
            writes: whether this one is to write it.
        """
        record = record_of(model)
        state = None if self._estimator is None else self._estimator.state()
        if not writes:
            return
        if record is not None:
            run = {"cut_step": self.cut_step, "config": self.config.to_dict()}
            write_cut(model, checkpoint, record, task=run)
            if self.scores is not None:
                self.scores.save(checkpoint / SCORES)
        elif self._estimator is not None and state is not None:
            tensors, header = state
            tensors |= {f"{_REST}.{name}": value for name, value in own_tensors(model).items()}
            header |= {
                "planned_steps": self._estimator.config.planned_steps,
                "config": self.config.to_dict(),
                "base": base_digests(model),
            }
            write_tensors(checkpoint / ESTIMATION, tensors, header)

    def prove(self, model: nn.Module, folder: Path, *, again: bool) -> None:
        """Load what was just saved and compare outputs; if it was done before, only `again`.

        Raises:
            CheckpointError: it cannot be loaded, or computes something else.
        """
        origin = origin_of(model)
        if (self._proved and not again) or not origin.known:
            return
        device = next(model.parameters()).device
        # Building a model draws random numbers; those of the run stay where they are.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            loaded = load(folder, origin.folder, quantization_config=quantisation_of(model))
        with nullcontext() if self._prefix is None else self._prefix.suspended():
            require_same_outputs(model, loaded, padded_batch(model, self._proof), folder)
        self._proved = True

    def restore_own(self, model: nn.Module, checkpoint: Path) -> None:
        """Bring back what an earlier checkpoint of this run has beside PEFT's files."""
        if record_of(model) is not None and (checkpoint / PRUNING).is_file():
            restore_tensors(model, read_record(checkpoint)[2], checkpoint)

    def restore(self, model: nn.Module, checkpoint: Path) -> None:
        """Bring a fresh model to the phase of `checkpoint`, before its weights are loaded.

        Raises:
            CheckpointError: no light run's checkpoint, another base, another configuration, or a form of PEFT
                that PEFT does not save whole.
        """
        form = active_form(model)
        if form is not None and form.no_resume is not None:
            raise CheckpointError(f"{checkpoint} cannot be resumed, because {form.no_resume}.")
        if (checkpoint / PRUNING).is_file():
            self._restore_cut(model, checkpoint)
        elif (checkpoint / ESTIMATION).is_file():
            self._restore_estimation(model, checkpoint)
        else:
            raise CheckpointError(
                f"{checkpoint} has neither {PRUNING} nor {ESTIMATION}: it is not of a light run."
            )

    def _restore_cut(self, model: nn.Module, checkpoint: Path) -> None:
        record, described, rest = read_record(checkpoint)
        run = described.get("task") or {}
        self._check_config(run.get("config"), checkpoint)
        if record_of(model) is None:
            cut_again(require_peft_model(model), record)
        restore_tensors(model, rest, checkpoint)
        self.plan, self.cut_step = record.plan, run.get("cut_step")
        if (checkpoint / SCORES).is_file():
            self.scores = Scores.load(checkpoint / SCORES)

    def _restore_estimation(self, model: nn.Module, checkpoint: Path) -> None:
        tensors, header = read_tensors(checkpoint / ESTIMATION)
        self._check_config(header.get("config"), checkpoint)
        own = under(tensors, _REST)
        odd = other_tensors(header.get("base") or {}, base_digests(model), own)
        if odd:
            raise CheckpointError(
                f"{checkpoint} was written with another base: {len(odd)} weights differ, {odd[0]} first."
            )
        restore_tensors(model, own, checkpoint)
        self._resumed = (tensors, header)

    def _check_config(self, found: dict[str, Any] | None, checkpoint: Path) -> None:
        if found != self.config.to_dict():
            raise CheckpointError(
                f"{checkpoint} was written under another lightpeft configuration; resume with the same "
                f"one. Found {differences(found or {}, self.config.to_dict())}."
            )


def _say_what_it_rests_on(plan: Plan) -> None:
    if plan.evidence is not None:
        logger.info("the plan rests on %s", plan.evidence.describe())
    if plan.weakness is not None:
        logger.warning("%s", plan.weakness)


def is_of_light_run(checkpoint: Path) -> bool:
    """Whether a Trainer's checkpoint was written in a light run."""
    return (checkpoint / PRUNING).is_file() or (checkpoint / ESTIMATION).is_file()


def _require_mergeable(model: nn.Module) -> None:
    form = active_form(model)
    if form is not None and not form.merges:
        raise ConfigError(
            f"budget.uniform makes the cut model an ordinary checkpoint, but {form.title} cannot be merged "
            "into its weights. Use LoRA or IA3, or leave budget.uniform out."
        )


def _can_freeze(model: nn.Module) -> bool:
    """Whether nothing but PEFT modules is trained in the lowest layer, so that it can go untrained."""
    base, prefix = base_of(model), getattr(require_peft_model(model).base_model, "prefix", "")
    lowest = base.get_submodule(lowest_stack(base)[0])
    return all(prefix in name or not p.requires_grad for name, p in lowest.named_parameters())


def _flat_scores(anatomy: Anatomy, modules: Sequence[PeftModule]) -> Scores:
    """Scores in which every unit is alike, to try a budget on."""
    return Scores(
        heads=tuple(torch.zeros(layer.heads) for layer in anatomy.layers),
        neurons=tuple(torch.zeros(layer.neurons) for layer in anatomy.layers),
        ranks={module.name: torch.zeros(module.rank) for module in modules},
        modules={module.name: 1.0 for module in modules},
        steps=0,
        methods={"base": "none", "module": "none", "rank": "none"},
    )


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
