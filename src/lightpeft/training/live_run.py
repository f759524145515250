"""The Trainer that a callback was called from, and whether its training is still going on."""

import sys
from types import FrameType

from transformers import Trainer


class LiveRun:
    """The call of `Trainer.train` that is on the stack where this is made.

    A Trainer tells its callbacks nothing when an exception or Ctrl-C ends its training. The frame of the call
    knows: one that still executes cannot be cleared. Without such a call (somebody drives the callback from
    a loop of their own) the run counts as going on, and its end is theirs to say.
    """

    def __init__(self) -> None:
        self._frame = _frame_of("train")

    def is_over(self) -> bool:
        """Whether that call has returned or raised."""
        if self._frame is None:
            return False
        try:
            self._frame.clear()
        except RuntimeError:
            return False
        return True


def trainer_at_work() -> Trainer | None:
    """The Trainer whose `train` is on the stack."""
    return _trainer_in(_frame_of("train"))


def trainer_that_pushes() -> Trainer | None:
    """The Trainer whose `push_to_hub` is on the stack."""
    return _trainer_in(_frame_of("push_to_hub"))


def _trainer_in(frame: FrameType | None) -> Trainer | None:
    return None if frame is None else frame.f_locals["self"]


def _frame_of(method: str) -> FrameType | None:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == method and isinstance(frame.f_locals.get("self"), Trainer):
            return frame
        frame = frame.f_back
    return None
