"""The order of examples by length, the same whether a run was interrupted or not."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


def say_epoch(batches: Any, epoch: int) -> None:
    """Tell a Trainer's loader the epoch before batches of it are skipped.

    In one of several processes accelerate 1.15 finds no sampler behind the skipped batches but its own, so
    that a run that is resumed in a later epoch would go on in the order of the first.
    """
    if hasattr(batches, "set_epoch"):
        batches.set_epoch(epoch)


class ResumableLengthSampler(LengthGroupedSampler):
    """Groups examples of similar length; the order of an epoch follows from seed and epoch alone.

    transformers' own draws it from the global generator, which is elsewhere when a run is resumed.

    Args:
        sampler: of one process, for its own examples of a step.
        processes: how many take the batches of this order by turns; those of a step are alike in length.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int, processes: int = 1) -> None:
        batch = sampler.batch_size * processes
        super().__init__(batch, lengths=sampler.lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next; the Trainer says it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=self.generator))
