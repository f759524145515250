"""`lightpeft VERB ...`: find the verb, parse its options, run it; whatever goes wrong ends in one line."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from lightpeft import stopping
from lightpeft.cli.launched import require_one_process
from lightpeft.cli.quiet import quieten
from lightpeft.errors import LightPeftError

VERBS = {
    "demo": "plain LoRA and light PEFT side by side on a small real encoder, offline",
    "train": "estimate, cut, train, evaluate and save a light model",
    "estimate": "score every unit, without cutting",
    "plan": "make a plan from scores",
    "anatomy": "what can be cut in a model, and whether a probe cut verifies",
    "evaluate": "measure a light checkpoint on its task",
    "predict": "label texts with a light checkpoint",
    "export": "write a light checkpoint in another form: merged, or a stock adapter of the whole base",
    "push": "upload a light checkpoint to the hub, with a card",
    "report": "write the HTML page of a run again",
    "bench": "measure steps (bench speed) or whole runs (bench run) against plain PEFT",
    "audit": "how well a backdoor in a received module survives, and what removes it",
}
DEBUG = "--debug"
BROKEN_PIPE = 141
"""What a shell says of a program that SIGPIPE ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated; 141 if the reader
        of the output went away.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in words
    words = [word for word in words if word != DEBUG]
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb, *options = words
    if verb == "--version":
        from lightpeft import __version__

        print(__version__)
        return 0
    if verb not in VERBS:
        print(f"lightpeft: unknown verb {verb!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    return _guarded(verb, options, debug)


def _guarded(verb: str, options: list[str], debug: bool) -> int:
    """Run a verb, and turn whatever ends it early into one line and a status."""
    is_command = stopping.is_command()
    try:
        quieten()
        require_one_process(verb)
        run = importlib.import_module(f"lightpeft.cli.{verb}").run
        with stopping.raised_inside() if is_command else nullcontext():
            status = int(run(options) or 0)
            if sys.stdout is not None:
                sys.stdout.flush()
        return status
    except KeyboardInterrupt as signalled:
        if is_command:
            stopping.leave(signalled)
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as stopped:  # `--help`, and rich where nobody reads
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"lightpeft {verb}: {described(error)}", file=sys.stderr)
        return error.exit_status if isinstance(error, LightPeftError) else 1


def described(error: Exception) -> str:
    """What ended a verb, in one line unless lightpeft itself wrote more."""
    if isinstance(error, LightPeftError):
        return str(error)
    name, text = type(error).__name__, " ".join(str(error).split())
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"out of memory ({text[:200]}): give a smaller training.batch_size or training.max_length."
    return f"{name}: {text[:500] or 'without a message'} ({DEBUG} shows the traceback)"


def _discard_output() -> None:
    """Nobody reads standard output any more: what is still to be written to it goes nowhere."""
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())
    return (
        f"usage: lightpeft VERB [options]\n\n{verbs}\n\n`lightpeft VERB --help` lists a verb's options; "
        f"{DEBUG} shows the traceback of an error."
    )
