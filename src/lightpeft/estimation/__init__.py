"""Estimation: gates and statistics during the first steps of a run."""

from lightpeft.estimation.activations import TokenWeights
from lightpeft.estimation.estimator import Estimator
from lightpeft.estimation.gates import fixed_gates
from lightpeft.estimation.run import estimate

__all__ = ["Estimator", "TokenWeights", "estimate", "fixed_gates"]
