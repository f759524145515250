"""Light checkpoints: written whole or not at all, checked before they are used."""

from lightpeft.checkpoint.export import export_full_adapter, export_merged
from lightpeft.checkpoint.format import (
    LIGHT,
    MERGED,
    PRUNING,
    kind_of,
    read_merged,
    read_record,
)
from lightpeft.checkpoint.light_tasks import LightTasks, TaskMemory
from lightpeft.checkpoint.load import (
    check_adapter_config,
    check_complete,
    find_folder,
    is_light_checkpoint,
    load,
    restore_parameters,
)
from lightpeft.checkpoint.merged import load_merged
from lightpeft.checkpoint.poison import POISON_FLAG, POISON_MARK, refuse_marked, refuse_marked_model
from lightpeft.checkpoint.progress import (
    RunMark,
    differences,
    discard_unfinished,
    is_complete,
    keep_newest,
    last_complete_checkpoint,
    mark_complete,
    require_complete,
    require_unused,
    run_of,
    unmark,
)
from lightpeft.checkpoint.save import keep_adapter, mark_restorable, save, unsaved_parameters, write_cut

__all__ = [
    "LIGHT",
    "MERGED",
    "POISON_FLAG",
    "POISON_MARK",
    "PRUNING",
    "LightTasks",
    "RunMark",
    "TaskMemory",
    "check_adapter_config",
    "check_complete",
    "differences",
    "discard_unfinished",
    "export_full_adapter",
    "export_merged",
    "find_folder",
    "is_complete",
    "is_light_checkpoint",
    "keep_adapter",
    "keep_newest",
    "kind_of",
    "last_complete_checkpoint",
    "load",
    "load_merged",
    "mark_complete",
    "mark_restorable",
    "read_merged",
    "read_record",
    "refuse_marked",
    "refuse_marked_model",
    "require_complete",
    "require_unused",
    "restore_parameters",
    "run_of",
    "save",
    "unmark",
    "unsaved_parameters",
    "write_cut",
]
