"""The DistributedDataParallel around a model that is cut: it goes on as if made around the small one."""

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightpeft.errors import ConfigError

_OPTIONS = (
    *("device_ids", "output_device", "dim", "process_group", "find_unused_parameters", "static_graph"),
    *("gradient_as_bucket_view", "batched_grad_copy", "skip_all_reduce_unused_params"),
    "forward_sync_buffers",
)
"""What it is made with, and has under the same name; in some releases of torch not all of it."""


def ddp_around(wrapped: nn.Module | None, model: nn.Module) -> DistributedDataParallel:
    """The wrapper that a Trainer trains `model` in.

    Args:
        wrapped: what the Trainer calls in a step.

    Raises:
        ConfigError: it is no DistributedDataParallel around `model`, or one that a cut breaks.
    """
    if not isinstance(wrapped, DistributedDataParallel) or wrapped.module is not model:
        raise ConfigError(
            "several processes train the model together, but not in torch's DistributedDataParallel, the "
            f"only form that can be cut inside a run: found {type(wrapped).__name__}. Leave torch_compile "
            "and other wrappers out, and train by a transformers Trainer under torchrun or accelerate launch."
        )
    if wrapped._comm_hooks:
        raise ConfigError(
            "the DistributedDataParallel around the model has a communication hook, whose state the cut "
            "would make wrong. Leave it out (register_comm_hook, ddp_comm_hook)."
        )
    return wrapped


def renew(wrapper: DistributedDataParallel) -> None:
    """Let a wrapper take its module's parameters as they are now, with what it was made with.

    It stays the same object, which Trainer and accelerate hold under several names. All processes call this;
    that their modules have the same shapes is checked, and they start with the first one's values.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    options: dict[str, Any] = {name: getattr(wrapper, name) for name in _OPTIONS if name in known}
    if not wrapper.bucket_bytes_cap_default:
        options["bucket_cap_mb"] = wrapper.bucket_bytes_cap / 2**20
    module = wrapper.module
    # The old reducer has to be gone before there is a new one: it holds the hooks that send gradients, and
    # accumulators of the old shapes.
    vars(wrapper).clear()
    vars(wrapper).update(vars(DistributedDataParallel(module, **options)))
