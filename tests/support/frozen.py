"""Models whose lowest layers train nothing, and how often these layers run."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lightpeft.anatomy import base_of, lowest_stack


def freeze_lowest(model: nn.Module, count: int = 1) -> None:
    """Stop training what is in the lowest layers."""
    for name in lowest_stack(model)[:count]:
        for parameter in base_of(model).get_submodule(name).parameters():
            parameter.requires_grad_(False)


@contextmanager
def examples_run(model: nn.Module, layer: int = 0) -> Iterator[list[int]]:
    """Collects how many examples one of the lowest layers computes, call by call."""
    module = base_of(model).get_submodule(lowest_stack(model)[layer])
    norm = next(part for part in module.modules() if "norm" in type(part).__name__.lower())
    runs: list[int] = []
    handle = norm.register_forward_pre_hook(lambda _, inputs: runs.append(len(inputs[0])))
    yield runs
    handle.remove()
