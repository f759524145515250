"""`lightpeft VERB ...`: find the verb, parse its options, run it, turn expected errors into one line."""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

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
    "report": "write the HTML page of a run again",
    "bench": "measure speed and memory (bench speed)",
    "audit": "how well a backdoor in a received module survives, and what removes it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status (0 done, 1 expected error, 2 wrong usage)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
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
    _quieten()
    try:
        run = importlib.import_module(f"lightpeft.cli.{verb}").run
        return int(run(options) or 0)
    except LightPeftError as error:
        print(f"lightpeft {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())
    return f"usage: lightpeft VERB [options]\n\n{verbs}\n\n`lightpeft VERB --help` lists a verb's options."


def _quieten() -> None:
    """Leave the terminal to our own lines: the libraries' progress and reports go."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lightpeft").setLevel(logging.INFO)
    # peft 0.21 asks for it under the old name; nobody who runs a command can do anything about that.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
