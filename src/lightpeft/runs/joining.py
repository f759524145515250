"""Runs of several processes: torchrun or accelerate launch started this one beside others."""

import os
from collections.abc import Mapping

import torch
from accelerate import PartialState
from torch import Tensor, nn

from lightpeft.processes import Processes

_COUNT = "WORLD_SIZE"


def join_processes() -> Processes:
    """Those that a launcher started, in one group from here on; this one alone, where none did."""
    if int(os.environ.get(_COUNT, "1")) > 1:
        PartialState(cpu=not torch.accelerator.is_available())
    return Processes.of_group()


@torch.no_grad()
def counts_items(model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether the loss depends on the number of items that a Trainer tells the model.

    With `average_tokens_across_devices` a Trainer multiplies the loss by the number of processes, because
    such a loss divides by the items of all of them. Most losses but those of language models are a mean over
    the process's own rows (transformers 5.23), and would come out as many times too large.
    """
    mode = model.training
    model.eval()
    try:
        few, many = (float(model(**batch, num_items_in_batch=count).loss) for count in (1, 1000))
    except TypeError:  # it takes no such argument
        return False
    finally:
        model.train(mode)
    return few != many
