"""Light checkpoints: written whole or not at all, checked before they are used."""

from lightpeft.checkpoint.format import PRUNING, read_record
from lightpeft.checkpoint.light_tasks import LightTasks, TaskMemory
from lightpeft.checkpoint.load import (
    check_adapter_config,
    check_complete,
    find_folder,
    is_light_checkpoint,
    load,
    restore_parameters,
)
from lightpeft.checkpoint.progress import (
    is_complete,
    keep_newest,
    last_complete_checkpoint,
    mark_complete,
    require_complete,
    unmark,
)
from lightpeft.checkpoint.save import mark_restorable, save, unsaved_parameters, write_cut

__all__ = [
    "PRUNING",
    "LightTasks",
    "TaskMemory",
    "check_adapter_config",
    "check_complete",
    "find_folder",
    "is_complete",
    "is_light_checkpoint",
    "keep_newest",
    "last_complete_checkpoint",
    "load",
    "mark_complete",
    "mark_restorable",
    "read_record",
    "require_complete",
    "restore_parameters",
    "save",
    "unmark",
    "unsaved_parameters",
    "write_cut",
]
