"""A journal's changes hold for the next backward, whatever graphs are still alive."""

import pytest
import torch
from torch import nn

from lightpeft.edits import Journal, index_tensor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_parameter_is_sliced_and_put_back_while_its_old_graph_lives(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.randn(4, 3, dtype=dtype))
    whole, inputs = weight.detach().clone(), torch.randn(2, 3, dtype=dtype)
    kept = [(inputs @ weight.T).sum()]
    kept[0].backward()
    gradient, journal = weight.grad, Journal()
    journal.slice(weight, 0, index_tensor([0, 2]))
    assert weight.dtype == dtype
    assert weight.grad is None
    kept.append((inputs @ weight.T).sum())
    kept[1].backward()
    assert torch.equal(weight.grad, inputs.sum(0).expand(2, 3))
    journal.undo()
    assert torch.equal(weight, whole)
    assert weight.grad is gradient
    (inputs @ weight.T).sum().backward()
    assert torch.equal(weight.grad, 2 * inputs.sum(0).expand(4, 3))
