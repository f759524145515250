"""The cut of a model on a quantised base, inside its run: of the floats, which are quantised again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from lightpeft.checkpoint import keep_packing, on_floats, quantisation_of, requantise, require_floats
from lightpeft.errors import ConfigError
from lightpeft.plan import Plan
from lightpeft.processes import Processes
from lightpeft.surgery import CutRecord, CutReport, cut, reapply


def require_cuttable(model: PeftModel, processes: Processes) -> None:
    """Refuse, before a run, a quantised base that cannot be cut in it; see to it that others stay trainable.

    Raises:
        ConfigError: it is trained by several processes, or see `require_floats`.
    """
    require_floats(model)
    keep_packing(model)
    if quantisation_of(model) is not None and not processes.is_alone:
        raise ConfigError(
            "a quantised base is cut in one process only. Estimate and cut in a first phase of one process "
            "(LightCallback(stop_after_cut=True)), and train load(checkpoint, quantization_config=...) in a "
            "second."
        )


def cut_in_run(
    model: PeftModel, plan: Plan, optimizer: torch.optim.Optimizer | None, **options: Any
) -> CutReport:
    """`cut`, also on a quantised base. Options are those of `cut`.

    Raises:
        CheckpointError: the cut floats cannot be quantised again; the model is of no use then.
        Exception: what else `cut` raises; the model is as it was.
    """
    if quantisation_of(model) is None:
        return cut(model, plan, optimizer, **options)
    trained = [(parameter, parameter.device) for parameter in model.parameters() if parameter.requires_grad]
    with _state_on_cpu(optimizer):
        floats = on_floats(model)
        try:
            report = cut(floats, plan, optimizer, **options)
        except BaseException:
            for parameter, device in trained:
                parameter.data = parameter.data.to(device)
            raise
    requantise(model, floats)
    return report


def cut_again(model: PeftModel, record: CutRecord) -> None:
    """`reapply` to a fresh model, also on a quantised base.

    Raises:
        Exception: what `reapply` raises.
    """
    if quantisation_of(model) is None:
        reapply(model, record)
        return
    floats = on_floats(model)
    reapply(floats, record)
    requantise(model, floats)


@contextmanager
def _state_on_cpu(optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Moments beside their parameters, which are there meanwhile."""
    states = {} if optimizer is None else optimizer.state
    places = {
        parameter: {key: value.device for key, value in state.items() if isinstance(value, Tensor)}
        for parameter, state in states.items()
    }
    _move(states, {parameter: dict.fromkeys(keys, torch.device("cpu")) for parameter, keys in places.items()})
    try:
        yield
    finally:
        _move(states, places)


def _move(states: Any, places: dict[Tensor, dict[str, torch.device]]) -> None:
    for parameter, devices in places.items():
        for key, device in devices.items():
            if key in states.get(parameter, {}):
                states[parameter][key] = states[parameter][key].to(device)
