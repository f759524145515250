"""Several trainings in one process, one at a time, in turns: noise of the machine hits all alike."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from accelerate.state import GradientState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lightpeft.errors import LightPeftError
from lightpeft.training import RandomState

T = TypeVar("T")


class MethodError(LightPeftError):
    """What ended one method's run, and with it all of them."""

    def __init__(self, method: str, error: BaseException) -> None:
        text = str(error) if isinstance(error, LightPeftError) else f"{type(error).__name__}: {error}"
        super().__init__(f"{method}: {text}")


class StoppedError(BaseException):
    """Ends the threads that wait when another one failed; no `except Exception` shall stop it."""


class Baton:
    """Says which of several runners runs now. Each has a thread of its own; all but one wait."""

    def __init__(self, names: Sequence[str]) -> None:
        self._line = deque(names)
        self._changed = threading.Condition()
        self._stopped = False

    def wait_for(self, name: str) -> None:
        """Return when it is this runner's turn.

        Raises:
            StoppedError: all shall end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._line[0] == name)
        self.check()

    def check(self) -> None:
        """Go on only if nobody said stop.

        Raises:
            StoppedError: somebody did.
        """
        if self._stopped:
            raise StoppedError

    def hand_on(self) -> None:
        """It is the next runner's turn, and the present one's after all the others."""
        with self._changed:
            self._line.rotate(-1)
            self._changed.notify_all()

    def leave(self, name: str) -> None:
        """This runner is done."""
        with self._changed:
            self._line.remove(name)
            self._changed.notify_all()

    def stop(self) -> None:
        """End all, those that wait at once and the one that runs after its step."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


@dataclass(frozen=True)
class _Shared:
    """What the runs of a process share and each changes: random generators, and accelerate's one object that
    knows the data loader and whether gradients are whole."""

    random: RandomState
    gradients: dict[str, Any]

    @classmethod
    def now(cls) -> "_Shared":
        return cls(RandomState.now(), dict(GradientState._shared_state))

    def restore(self) -> None:
        self.random.restore()
        GradientState._shared_state.clear()
        GradientState._shared_state.update(self.gradients)


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation in a run found, and when."""

    step: int
    seconds: float
    """Of this run's own time so far, this evaluation included."""

    metric: float


@dataclass(eq=False)
class Turns(TrainerCallback):
    """Hands the baton on after some steps and every evaluation; its clock runs while it has the baton."""

    name: str
    baton: Baton
    chunk: int
    evaluations: list[Evaluation] = field(default_factory=list)
    evaluation_seconds: float = 0.0
    _seconds: float = 0.0
    _since: float = 0.0
    _shared: _Shared | None = None

    @property
    def seconds(self) -> float:
        """Seconds that this run has had the baton, up to now while it has it."""
        _wait_for_device()
        return self._seconds + time.perf_counter() - self._since

    def keep_place(self) -> None:
        """The run was set up just now: it will begin from here."""
        self._shared = _Shared.now()

    def begin(self) -> None:
        """Wait for the first turn."""
        self._take()

    def end(self) -> float:
        """Leave the others to themselves. Returns this run's seconds."""
        seconds = self.seconds
        self.baton.leave(self.name)
        return seconds

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.baton.check()
        if state.global_step % self.chunk == 0:
            self._next()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.baton.check()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        metrics = kwargs["metrics"]
        self.evaluation_seconds += metrics["eval_runtime"]
        self.evaluations.append(Evaluation(state.global_step, self.seconds, metrics["eval_main"]))
        self._next()

    def _next(self) -> None:
        self._seconds = self.seconds
        self.keep_place()
        self.baton.hand_on()
        self._take()

    def _take(self) -> None:
        self.baton.wait_for(self.name)
        if self._shared is not None:
            self._shared.restore()
        self._since = time.perf_counter()


def take_turns(baton: Baton, runs: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Call each of `runs` in a thread of its own; each waits for the baton, hands it on, and leaves.

    Raises:
        MethodError: one of them failed; the others are ended.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(len(runs), "", torch.set_num_threads, (threads,)) as pool:
        futures = {name: pool.submit(_named, name, run) for name, run in runs.items()}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            baton.stop()  # nobody is left to hear it, unless one failed or Ctrl-C came
    for name, future in futures.items():
        _raise_own(name, future)
    return {name: future.result() for name, future in futures.items()}


def _named(name: str, run: Callable[[], T]) -> T:
    """Call it in a thread of its name, by which records of logging can be told apart."""
    threading.current_thread().name = name
    return run()


def _raise_own(name: str, future: "Future[Any]") -> None:
    error = future.exception()
    if error is not None and not isinstance(error, StoppedError):
        raise MethodError(name, error) from error


def _wait_for_device() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
