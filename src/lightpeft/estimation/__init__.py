"""Estimation: gates and statistics during the first steps of a run."""

from lightpeft.estimation.estimator import Estimator
from lightpeft.estimation.gates import fixed_gates
from lightpeft.estimation.run import estimate, should_stop
from lightpeft.estimation.stopping import Settled

__all__ = ["Estimator", "Settled", "estimate", "fixed_gates", "should_stop"]
