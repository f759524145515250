"""Benchmarks: ratios of two things measured in one process."""

from lightpeft.bench.result_file import result_file, save_result
from lightpeft.bench.speed import SpeedBenchmark, run_speed

__all__ = ["SpeedBenchmark", "result_file", "run_speed", "save_result"]
