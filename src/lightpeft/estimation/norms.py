"""The size of a unit's weights, for scores that look at nothing else."""

from torch import Tensor
from transformers import PreTrainedModel

from lightpeft.anatomy import Units, linear_at
from lightpeft.linears import matrix
from lightpeft.processes import whole


def weight_norms(base: PreTrainedModel, units: Units) -> Tensor:
    """L2 norm of all weights of each unit (units,), float32 on the CPU; what units share counts for each."""
    squares = column_squares(base, units.out).view(units.count, units.size).sum(1)
    for rows in units.rows:
        if rows.role != "vector":
            owners = units.count // rows.share
            own = _squares(base, rows.name, 1)[rows.start : rows.start + owners * rows.size]
            squares = squares + own.view(owners, rows.size).sum(1).repeat_interleave(rows.share)
    return squares.sqrt()


def column_squares(base: PreTrainedModel, linear: str) -> Tensor:
    """Squared L2 norm of what each input of a linear is multiplied by (inputs,), float32 on the CPU."""
    return _squares(base, linear, 0)


def _squares(base: PreTrainedModel, name: str, over: int) -> Tensor:
    """Sums of the squared weights of a linear over its outputs (0) or inputs (1), float32 on the CPU."""
    return whole(matrix(linear_at(base, name)).detach().float().square().sum(over)).cpu()
