"""Benchmarks: ratios of two things measured in one process."""

from lightpeft.bench.speed import SpeedBenchmark, run_speed

__all__ = ["SpeedBenchmark", "run_speed"]
