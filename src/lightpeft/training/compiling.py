"""`torch.compile` in a light run: what is compiled is the small model, once."""

import sys
from contextlib import ExitStack

import torch


class NothingCompiled:
    """While one of them is there, compiled models of this process run as they were written.

    Estimation hooks every layer, and the cut changes the shapes after it: code for that would be thrown away.
    """

    _there = 0
    _stance = ExitStack()

    def __init__(self) -> None:
        self._is_there = True
        if NothingCompiled._there == 0:
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        NothingCompiled._there += 1

    def remove(self) -> None:
        """After the last one, compile as before the first."""
        if self._is_there:
            self._is_there = False
            NothingCompiled._there -= 1
            if NothingCompiled._there == 0:
                self._stance.close()

    def __del__(self) -> None:
        # A run that was broken off has nobody who would take it out; at Python's end it does not matter.
        if not sys.is_finalizing():
            self.remove()
