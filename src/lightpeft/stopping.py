"""Ctrl-C and SIGTERM end the command `lightpeft` in one line, whatever it is doing; imports included.

Nothing is changed in a process that only uses the library: signals are its own affair.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any]

ENDINGS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception, so that what a verb began is tidied up as after Ctrl-C."""


def is_command() -> bool:
    """Whether this process is `lightpeft ...` or `python -m lightpeft ...`."""
    if sys.argv[:1] == ["-m"]:  # Python says so while it imports the package that it will run.
        return ("-m", "lightpeft") in pairwise(sys.orig_argv)
    script = Path(sys.argv[0] if sys.argv else "")
    return script.stem == "lightpeft" or script.parts[-2:] == ("lightpeft", "__main__.py")


def end_at_once(number: int, frame: FrameType | None = None) -> NoReturn:
    """Leave with one line. For when there is nothing to tidy up, or somebody insists."""
    del frame
    word, status = ENDINGS[signal.Signals(number)]
    os.write(2, f"{word}\n".encode())
    os._exit(status)


def listen(handler: Handler) -> None:
    """Let `handler` have the signals, unless the process was started to ignore them (nohup)."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def raised_inside() -> Iterator[None]:
    """The first signal inside raises where the program is; a second one, or one after it, ends at once.

    Raises:
        KeyboardInterrupt: for the signal, also where a library made another error of it.
    """
    signalled: list[KeyboardInterrupt] = []

    def raise_once(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        listen(end_at_once)
        signalled.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise signalled[0]

    listen(raise_once)
    try:
        yield
    except Exception:
        if signalled:
            raise signalled[0] from None
        raise
    finally:
        listen(end_at_once)


def leave(error: KeyboardInterrupt) -> NoReturn:
    """End the process for a signal that was raised, without waiting for threads that a library left."""
    end_at_once(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def guard_command() -> None:
    """In the process of the command: from now on signals end it at once."""
    if is_command():
        listen(end_at_once)
        sys.unraisablehook = _unraisable


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Python cannot pass on what is raised while it tidies up, and would go on."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        leave(found.exc_value)
    sys.__unraisablehook__(found)


guard_command()
