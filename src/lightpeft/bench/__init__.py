"""Benchmarks: ratios of things measured in one process."""

from typing import TYPE_CHECKING

from lightpeft.lazy import lazy_names

if TYPE_CHECKING:
    from lightpeft.bench.methods import METHODS, Method, chosen_methods
    from lightpeft.bench.relay import MethodError
    from lightpeft.bench.result_file import result_file, save_result
    from lightpeft.bench.rows import select_rows
    from lightpeft.bench.run_files import run_benchmark
    from lightpeft.bench.run_summary import run_table
    from lightpeft.bench.speed import SpeedBenchmark, run_speed
    from lightpeft.bench.whole_runs import RunBenchmark
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "METHODS",
    "Method",
    "MethodError",
    "RunBenchmark",
    "SpeedBenchmark",
    "chosen_methods",
    "result_file",
    "run_benchmark",
    "run_speed",
    "run_table",
    "save_result",
    "select_rows",
]
