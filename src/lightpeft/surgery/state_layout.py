"""How an optimizer keeps its state: found out on a parameter that stands in for those it trains.

Nothing is assumed about any class of optimizer. One of the user's own class, with the user's options, steps a
stand-in twice, in two sizes: what grows with a dimension of the parameter runs over that dimension.
"""

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from lightpeft.errors import ConfigError

Axes = tuple[int | None, ...]
"""Per axis of a state tensor: the dimension of the parameter that it runs over, None if it is one entry."""
TwinOf = Callable[[nn.Parameter], torch.optim.Optimizer]
Slices = list[tuple[int, Tensor]]
"""The (dimension, kept indices) that a parameter was sliced by, in order."""


@dataclass(frozen=True)
class Layout:
    """Where the entries of a parameter lie in its state tensors, by the state's keys."""

    axes: Mapping[str, Axes]

    def sliced(self, state: Mapping[str, Any], before: torch.Size, slices: Slices) -> dict[str, Any] | None:
        """The state of what is left of a parameter of shape `before`; None if it lies otherwise."""
        found = {key: self._sliced(key, value, before, slices) for key, value in state.items()}
        return None if any(found[key] is None and state[key] is not None for key in state) else found

    def _sliced(self, key: str, value: Any, before: torch.Size, slices: Slices) -> Any:
        if _is_number(value):
            return value
        axes = self.axes.get(key)
        if axes is None or type(value) is not Tensor or value.shape != _shape_of(axes, before):
            return None
        for dim, kept in slices:
            if dim in axes:
                value = value.index_select(axes.index(dim), kept.to(value.device))
        return value.contiguous()


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper, or `optimizer` itself."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def refusal(optimizer: torch.optim.Optimizer, why: str) -> ConfigError:
    """The error for an optimizer that does not survive a cut."""
    return ConfigError(
        f"the optimizer {type(optimizer).__name__} cannot follow the cut: {why}. Use one that keeps plain "
        "moments for each parameter, such as optim='adamw_torch', 'adafactor', 'lion_32bit' or 'sgd'."
    )


def find_layout(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], like: Tensor, shape: torch.Size
) -> Layout | None:
    """How `optimizer` keeps the state of a parameter of `group` with the type and place of `like`.

    None: it cannot be sliced, but the optimizer goes on if it starts anew for the parameters that were cut.

    Raises:
        ConfigError: the optimizer does not survive a cut.
    """
    device = [like.device] if like.device.type == "cuda" else []
    problem: Exception | None = None
    for twin in (_twin, _built_anew):
        with torch.random.fork_rng(devices=device):
            try:
                return _try_out(partial(_Trial, optimizer, partial(twin, optimizer, group), like), shape)
            except ConfigError:
                raise
            except Exception as error:  # of somebody's step; which one, nobody knows
                problem = problem or error
    raise refusal(optimizer, f"a trial of it ended in {type(problem).__name__}: {problem}") from problem


def _try_out(trial_of: Callable[[torch.Size], "_Trial"], shape: torch.Size) -> Layout | None:
    wider = torch.Size(size * (dim + 2) for dim, size in enumerate(shape))
    trials = trial_of(shape), trial_of(wider)
    for trial in trials:
        trial.step()
    axes = {key: _axes(value, trials[1].state.get(key)) for key, value in trials[0].state.items()}
    tensors = {key: found for key, found in axes.items() if found is not None}
    layout = Layout(tensors) if len(tensors) == len(axes) else None
    slices = [(dim, torch.arange(0, size, 2)) for dim, size in enumerate(shape)]
    if layout is not None and trials[0].survives(slices, layout.sliced(trials[0].state, shape, slices)):
        return layout
    again = trial_of(shape)
    again.step()
    if again.survives(slices, {}):
        return None
    raise refusal(again.original, "its state cannot be cut, and it does not start anew without it")


class _Trial:
    """A twin of an optimizer that trains one parameter of a given shape, and nothing else."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, twin: TwinOf, like: Tensor, shape: torch.Size
    ) -> None:
        inside = [name for name, value in vars(optimizer).items() if isinstance(value, torch.optim.Optimizer)]
        if inside:
            raise refusal(optimizer, f"it wraps another optimizer ({inside[0]}), with a state of its own")
        self.original = optimizer
        self.parameter = nn.Parameter(torch.ones(shape, dtype=like.dtype, device=like.device))
        self.twin = twin(self.parameter)

    @property
    def state(self) -> dict[str, Any]:
        """Of the parameter."""
        found: dict[str, Any] = self.twin.state.get(self.parameter, {})
        return found

    def step(self) -> None:
        """Step once.

        Raises:
            ConfigError: what the optimizer knows of the parameter is somewhere else.
        """
        before = self.parameter.detach().clone()
        draw = torch.randn(self.parameter.shape, generator=torch.Generator().manual_seed(0))
        self.parameter.grad = draw.to(self.parameter)
        type(self.twin).step(self.twin)
        if set(self.twin.state) - {self.parameter}:
            raise refusal(self.original, "it does not keep its state by parameter")
        if not self.state and torch.equal(before, self.parameter.detach()):
            raise refusal(self.original, "a step of it does not train the parameters it was given")

    def survives(self, slices: Slices, state: dict[str, Any] | None) -> bool:
        """Whether a step goes well once the parameter is sliced and has this state."""
        if state is None:
            return False
        value = self.parameter.data
        for dim, kept in slices:
            value = value.index_select(dim, kept.to(value.device))
        self.parameter.grad, self.parameter.data = None, value.contiguous()
        self.twin.state[self.parameter] = state
        try:
            self.step()
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError):
            return False
        return self.parameter.shape == value.shape and bool(torch.isfinite(self.parameter).all())


def _twin(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> torch.optim.Optimizer:
    """An optimizer of the same class with the same attributes, but for parameters, state and hooks.

    Not its constructor: nobody knows with which arguments it was called.
    """
    kind = type(optimizer)
    twin: torch.optim.Optimizer = object.__new__(kind)
    for name, value in vars(optimizer).items():
        if callable(getattr(kind, name, None)):
            continue  # a method that a scheduler or a profiler has wrapped
        own = copy.copy(value) if isinstance(value, dict | list | set) else value
        vars(twin)[name] = OrderedDict() if name.endswith("_hooks") else own
    twin.param_groups, twin.state = [_options(group, parameter)], defaultdict(dict)
    into_training = getattr(twin, "train", None)  # of schedule-free optimizers
    if callable(into_training):
        into_training()
    return twin


def _built_anew(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> torch.optim.Optimizer:
    """An optimizer from the constructor, for those that make their state there; its arguments are guessed."""
    taken = inspect.signature(type(optimizer)).parameters
    arguments = {name: group[name] for name in optimizer.defaults if name in taken and name in group}
    return type(optimizer)([_options(group, parameter)], **arguments)


def _options(group: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    options = {**group, "params": [parameter]}
    if "param_names" in options:
        options["param_names"] = ["the stand-in"]
    if options.get("lr") is not None and float(options["lr"]) == 0:
        options["lr"] = 1e-3  # at the first step of a warm-up; nothing would move
    return options


def _axes(value: Any, wider: Any) -> Axes | None:
    """The axes of a state tensor that has been seen in two sizes: of dimension d, the second is d + 2 times
    the first."""
    if _is_number(value):
        return ()
    if type(value) is not Tensor or type(wider) is not Tensor or value.dim() != wider.dim():
        return None
    axes: list[int | None] = []
    for size, wide in zip(value.shape, wider.shape, strict=True):
        if size == wide and size != 1:
            return None
        axes.append(None if size == wide else wide // size - 2)
        if wide % size or axes[-1] == -1:
            return None
    return tuple(axes)


def _shape_of(axes: Axes, shape: torch.Size) -> tuple[int, ...]:
    return tuple(1 if axis is None else shape[axis] if axis < len(shape) else -1 for axis in axes)


def _is_number(value: Any) -> bool:
    """What stays as it is: a number, a flag, a name, nothing."""
    if isinstance(value, Tensor):
        return value.dim() == 0
    return value is None or isinstance(value, bool | int | float | complex | str)
