"""`lightpeft bench BENCHMARK ...`: steps, or whole runs, against plain PEFT."""

import importlib
from collections.abc import Sequence

from lightpeft.errors import ConfigError

BENCHMARKS = {
    "speed": "a step and an inference: seconds and peak memory",
    "run": "whole runs of several methods in turns: seconds, metric over time, peak memory; resumable",
    "quality": "the metric of methods on tasks: a grid of models, tasks, methods and seeds; resumable",
}
_MODULES = {"run": "whole_runs"}
"""Where the benchmark's own name will not do: a module `run` would take the place of the function below."""


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb; its first word names the benchmark."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    if not arguments or arguments[0] not in BENCHMARKS:
        found = arguments[0] if arguments else "nothing"
        raise ConfigError(f"found {found}; choose a benchmark: lightpeft bench {' | '.join(BENCHMARKS)}")
    name, *options = arguments
    importlib.import_module(f"lightpeft.cli.bench.{_MODULES.get(name, name)}").run(options)


def _usage() -> str:
    benchmarks = "\n".join(f"  {name:<8}{text}" for name, text in BENCHMARKS.items())
    return (
        f"usage: lightpeft bench BENCHMARK [options]\n\n{benchmarks}\n\n`lightpeft bench BENCHMARK --help` "
        "lists options."
    )
