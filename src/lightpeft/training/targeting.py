"""A run that has a target: what it costs is measured, predicted for the plan, and measured again."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightpeft.anatomy import find_anatomy
from lightpeft.config import LightConfig, Quantity, Target
from lightpeft.costs import CostTable, Schedule
from lightpeft.errors import ConfigError
from lightpeft.latency import cost_table, seconds_of_forward, step_bytes
from lightpeft.plan import TargetPlan
from lightpeft.planning import ESTIMATION_COST, Pricing
from lightpeft.processes import Processes
from lightpeft.surgery import can_narrow, labelled, last_layer, padded_batch, repeats_layer

logger = logging.getLogger(__name__)

_TRIAL = 0.99
"""The share of parameters by which it is tried out, before a run, whether anything may be cut."""


@dataclass(frozen=True)
class Pace:
    """How a run goes over its data."""

    folder: Path
    """Where the latency table is kept."""

    each_pass: int | None = None
    """Optimizer steps of a pass; None where nobody knows."""

    batches: int = 1
    """Forward passes of a step."""


class Targeting:
    """What a session asks about its target, in the order of a run."""

    def __init__(
        self,
        config: LightConfig,
        pace: Pace,
        total_steps: int,
        first_step: int,
        device: torch.device,
        processes: Processes = Processes(),
    ) -> None:
        # On the CPU the clock of the latency table, for which other programs do not count.
        self._clock = time.thread_time if device.type == "cpu" else time.perf_counter
        self._config, self._pace, self._total, self._processes = config, pace, total_steps, processes
        self._table: CostTable | None = None
        self._before = 0
        self._parameters = 0
        self._is_whole = first_step == 0
        self._seconds: list[float] = []
        self._sizes: list[int] = []
        self._size, self._computes = 0, False
        self._watching: RemovableHandle | None = None
        self._began: float | None = None
        self.measured: float | None = None
        """Share of plain PEFT's cost that was found after the cut, or at the end of the run."""

    @property
    def target(self) -> Target:
        """The target."""
        return self._config.target

    def watch(self, model: nn.Module) -> None:
        """Note how much each step of the run computes: batches of the first are not like those of the rest,
        where the Trainer groups them by length, the longest first."""
        if self.target.quantity == "training":
            self._watching = model.register_forward_pre_hook(self._note_size, with_kwargs=True)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _note_size(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._computes:
            self._size += _size_of((*args, *kwargs.values()))

    def trial(self, estimation_steps: int) -> Pricing:
        """What a plan is tried out with before the run: no cut that only a measurement can choose.

        Raises:
            ConfigError: estimation alone takes more than the target.
        """
        least = ESTIMATION_COST * estimation_steps / self._total
        if self.target.training is not None and self.target.training <= least:
            raise ConfigError(
                f"target.training={self.target.training:g} cannot be met: the {estimation_steps} steps of "
                f"estimation alone take about {least:.3f} of the run. Train longer, or estimate shorter."
            )
        if self.target.quantity == "parameters":
            return Pricing(self.target)
        return Pricing(Target(parameters=_TRIAL, cuts=self.target.cuts))

    def pricing(self, model: nn.Module, batch: Mapping[str, Any], steps: int) -> Pricing:
        """Measure the uncut model, or read what was measured of it, in the process that is asked.

        Args:
            batch: arguments of its forward.
            steps: optimizer steps so far.
        """
        self._before, self._parameters = steps, find_anatomy(model).parameters
        if self.target.quantity == "parameters":
            return Pricing(self.target)
        self._table = cost_table(
            model,
            batch,
            self.target.quantity,
            self._config.budget,
            self._pace.folder,
            narrows=self._narrows(model, batch),
        )
        prefix = self._config.prefix
        schedule = Schedule(
            total=self._total,
            before=steps,
            each_pass=self._steps_until_all_is_known(),
            batches=self._pace.batches,
            size=self._size_of_batches(batch),
            freezes=prefix.frozen,
            caches=prefix.cache,
        )
        return Pricing(self.target, self._table, schedule)

    def _size_of_batches(self, batch: Mapping[str, Any]) -> float:
        """On average so far, over that of `batch`."""
        own = _size_of(batch.values())
        seen = math.fsum(self._sizes) / max(1, len(self._sizes)) / self._pace.batches
        return seen / own if seen and own else 1.0

    def _steps_until_all_is_known(self) -> int | None:
        """A pass; of several processes each keeps what it saw itself, and sees another part in each pass."""
        return None if self._pace.each_pass is None else self._pace.each_pass * self._processes.count

    def _narrows(self, model: nn.Module, batch: Mapping[str, Any]) -> bool:
        """Whether the cut will let the last layer run for the first token alone, where it is priced."""
        repeats = self.target.quantity != "inference" and repeats_layer(model, last_layer(model))
        return (
            self._config.surgery.first_token
            and not repeats
            and can_narrow(model, labelled(padded_batch(model, batch), batch))
        )

    def say_after_cut(self, model: nn.Module, batch: Mapping[str, Any], plan: TargetPlan) -> None:
        """Measure the cut model, where its target is not of the whole run, and log both numbers.

        Of several processes the first measures, while the others wait.
        """
        if plan.quantity == "training":
            logger.info("%s", plan.describe())
            return
        measure = _MEASURES[plan.quantity]
        self.measured = self._processes.decided(lambda: measure(self, model, batch))
        logger.info("%s", described(plan, self.measured))

    def begin_step(self) -> None:
        """An optimizer step begins."""
        self._began, self._size, self._computes = self._clock(), 0, True

    def end_backward(self) -> None:
        """What runs the model from here on, as a cut does, is none of the step's batches."""
        self._computes = False

    def end_step(self) -> None:
        """It is over, the cut counted if it was in this step."""
        if self._began is not None:
            self._seconds.append(self._clock() - self._began)
            self._sizes.append(self._size)
        self._began = None

    def say_at_end(self, plan: TargetPlan) -> None:
        """Log what the whole run took, if it was this process that saw it."""
        if self._watching is not None:
            self._watching.remove()
        if plan.quantity != "training" or not self._is_whole:
            return
        self.measured = self._processes.decided(self._of_the_whole_run)
        if self.measured is not None:
            logger.info("%s", described(plan, self.measured))

    def _of_the_whole_run(self) -> float | None:
        """Seconds over those of plain PEFT, which estimation tells; None where it was not seen."""
        estimating = self._before - 1  # the last of them has the cut in it
        if estimating < 1 or len(self._seconds) <= self._before:
            return None
        seen = sum(self._sizes[:estimating])
        times = sum(self._sizes) / seen if seen else len(self._sizes) / estimating
        return math.fsum(self._seconds) / (times * math.fsum(self._seconds[:estimating]) / ESTIMATION_COST)

    def _forward(self, model: nn.Module, batch: Mapping[str, Any]) -> float | None:
        assert self._table is not None
        assert self._table.forward is not None
        return seconds_of_forward(model, batch) / self._table.forward.whole

    def _memory(self, model: nn.Module, batch: Mapping[str, Any]) -> float | None:
        assert self._table is not None
        assert self._table.held is not None
        return step_bytes(model, batch) / self._table.held.whole

    def _left(self, model: nn.Module, batch: Mapping[str, Any]) -> float | None:
        return find_anatomy(model).parameters / self._parameters


_MEASURES: dict[Quantity, Callable[[Targeting, nn.Module, Mapping[str, Any]], float | None]] = {
    "inference": Targeting._forward,
    "memory": Targeting._memory,
    "parameters": Targeting._left,
}


def _size_of(values: Iterable[Any]) -> int:
    """Numbers in a batch."""
    return sum(value.numel() for value in values if isinstance(value, Tensor) and value.dim() > 1)


def described(plan: TargetPlan, measured: float | None) -> str:
    """Target, prediction and measurement in one line."""
    return plan.describe() + ("" if measured is None else f"; measured {measured:.3g}")
