"""`lightpeft audit VERB ...`: how well a backdoor in a received module survives, and what removes it."""

import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "scan": "look into a received module: files, weights, behaviour; exit status 1 if something was found",
    "defend": "train a received module behind a defence, on your own data",
    "run": "measure a grid of scenario, attack, form, defence and seed; resumable",
    "report": "write the HTML page of a grid's cells",
    "demo": "attack, defend, scan and report on built-in text, offline",
}
_MODULES = {"run": "grid"}
"""Where the verb's own name will not do: a module `run` would take the place of the function below."""


def run(arguments: Sequence[str]) -> int:
    """Entry point of the verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb, *options = arguments
    if verb not in VERBS:
        print(f"lightpeft audit: unknown verb {verb!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"lightpeft.cli.audit.{_MODULES.get(verb, verb)}").run(options) or 0)


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<8}{text}" for verb, text in VERBS.items())
    return f"usage: lightpeft audit VERB [options]\n\n{verbs}\n\n`lightpeft audit VERB --help` lists options."
