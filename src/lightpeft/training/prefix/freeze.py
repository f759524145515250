"""Whether the lowest layers of a cut model run apart in the rest of a run, and how."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lightpeft.config import PrefixConfig
from lightpeft.training.prefix.frozen import FrozenPrefix
from lightpeft.training.prefix.row_cache import RowCache
from lightpeft.training.prefix.stack import frozen_layer_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ahead:
    """What is left of a run."""

    passes: float | None
    """Passes over the training data; None where their length is not known."""

    rows: int | None
    """Examples of one pass, if known."""

    folder: Path
    """Where a file may be made."""


def freeze_prefix(
    model: nn.Module, config: PrefixConfig, ahead: Ahead, is_over: Callable[[], bool]
) -> FrozenPrefix | None:
    """Run the lowest layers of a cut model apart, if there are any and it is asked for."""
    if not config.frozen:
        return None
    count = len(frozen_layer_names(model))
    if count == 0:
        logger.info("frozen prefix: none, because the lowest layer is trained")
        return None
    cache, how = None, "without a cache, because prefix.cache is off"
    if config.cache and ahead.passes is not None and ahead.passes <= 1:
        how = "without a cache, because one pass over the data is left"
    elif config.cache:
        cache, how = cache_of(config, ahead.folder), "from a cache for examples seen before"
    logger.info("frozen prefix: the lowest %d layers run without graph and dropout, %s", count, how)
    return FrozenPrefix(model, cache=cache, rows=ahead.rows, is_over=is_over)


def cache_of(config: PrefixConfig, folder: Path) -> RowCache:
    """An empty cache as a run has it."""
    dtype = None if config.dtype == "compute" else torch.bfloat16
    memory, disk = (int(size * 2**30) for size in (config.memory, config.disk))
    return RowCache(memory, disk, folder, dtype)
