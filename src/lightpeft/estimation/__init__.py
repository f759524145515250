"""Estimation: gates and statistics during the first steps of a run."""

from lightpeft.estimation.estimator import Estimator
from lightpeft.estimation.gates import fixed_gates
from lightpeft.estimation.run import estimate

__all__ = ["Estimator", "estimate", "fixed_gates"]
