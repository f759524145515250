"""The latency table of a run: from its folder if it is of this model, device and batch, else measured."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.adapters import find_modules
from lightpeft.anatomy import base_of, find_anatomy
from lightpeft.config import Budget, Quantity
from lightpeft.costs import CostTable
from lightpeft.errors import CheckpointError, PlanError
from lightpeft.files import read_json, write_json
from lightpeft.latency.measure import measure_costs

LATENCY = "latency.json"

logger = logging.getLogger(__name__)


def cost_table(
    model: nn.Module,
    batch: Mapping[str, Any],
    quantity: Quantity,
    budget: Budget,
    folder: Path,
    *,
    narrows: bool = False,
) -> CostTable:
    """The table in `folder`, or a new one, which is put there.

    Args:
        narrows: whether the last layer will run for the first token alone.
    """
    key = key_of(model, batch, quantity, budget) | {"first_token": narrows}
    found = read_table(folder / LATENCY)
    if found is not None and found.key == key:
        logger.info("latency: what the layers cost is read from %s", folder / LATENCY)
        return found
    table = measure_costs(model, batch, quantity, budget, key, narrows=narrows)
    logger.info("latency: measured what the layers cost in %.1f s", table.seconds)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / LATENCY, table.to_dict())
    return table


def read_table(path: Path) -> CostTable | None:
    """A table from a file; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        return CostTable.from_dict(read_json(path))
    except (CheckpointError, PlanError) as error:
        logger.warning("latency: %s It is measured anew.", error)
        return None


def key_of(model: nn.Module, batch: Mapping[str, Any], quantity: Quantity, budget: Budget) -> dict[str, Any]:
    """What the numbers depend on."""
    base, anatomy = base_of(model), find_anatomy(model)
    parameter = next(base.parameters())
    device = parameter.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "quantity": quantity,
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "dtype": str(parameter.dtype),
        "model_type": anatomy.model_type,
        "layers": [layer.describe() for layer in anatomy.layers],
        "modules": {module.name: module.rank for module in find_modules(model)},
        "batch": {name: list(value.shape) for name, value in batch.items() if isinstance(value, Tensor)},
        "kv_groups": budget.kv_groups,
    }
