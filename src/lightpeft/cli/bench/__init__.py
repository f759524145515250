"""`lightpeft bench speed | run`: steps, or whole runs, against plain PEFT."""

import importlib
from collections.abc import Sequence

from lightpeft.errors import ConfigError

BENCHMARKS = {"speed": "speed", "run": "whole_runs"}
"""Module of each; one called `run` would take the place of the function below."""


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb; its first word names the benchmark."""
    if not arguments or arguments[0] not in BENCHMARKS:
        found = arguments[0] if arguments else "nothing"
        raise ConfigError(f"found {found}; choose a benchmark: lightpeft bench {' | '.join(BENCHMARKS)}")
    name, *options = arguments
    importlib.import_module(f"lightpeft.cli.bench.{BENCHMARKS[name]}").run(options)
