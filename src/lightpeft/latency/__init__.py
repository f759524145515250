"""Latency: what the layers of a model cost on its device and a batch of the run, measured once."""

from lightpeft.latency.file import cost_table
from lightpeft.latency.measure import measure_costs, seconds_of_forward, step_bytes

__all__ = ["cost_table", "measure_costs", "seconds_of_forward", "step_bytes"]
