"""Light checkpoints: written whole or not at all, checked before they are used."""

from lightpeft.checkpoint.base import AUTO_CLASSES
from lightpeft.checkpoint.export import (
    export_full_adapter,
    export_gguf,
    export_merged,
    export_onnx,
    export_torch,
    export_transformers,
)
from lightpeft.checkpoint.floats import on_floats, requantise, require_floats
from lightpeft.checkpoint.format import (
    LIGHT,
    MERGED,
    PRUNING,
    bind_files,
    kind_of,
    read_merged,
    read_record,
)
from lightpeft.checkpoint.graph import Graph
from lightpeft.checkpoint.light_tasks import LightTasks, TaskMemory
from lightpeft.checkpoint.load import (
    check_adapter_config,
    check_complete,
    check_runs_no_code,
    find_folder,
    is_light_checkpoint,
    load,
)
from lightpeft.checkpoint.merged import load_cut, load_merged
from lightpeft.checkpoint.origin import origin_of
from lightpeft.checkpoint.own import own_tensors, restore_tensors
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
from lightpeft.checkpoint.proof import require_same_outputs
from lightpeft.checkpoint.push import Parcel, pack, send
from lightpeft.checkpoint.quantise import keep_packing, quantisation_of
from lightpeft.checkpoint.save import keep_adapter, save, write_cut
from lightpeft.checkpoint.seal import is_sealed, seal_weights
from lightpeft.checkpoint.ways_out import copy_cut, guard, save_with_state

__all__ = [
    "AUTO_CLASSES",
    "LIGHT",
    "MERGED",
    "POISON_FLAG",
    "POISON_MARK",
    "PRUNING",
    "Graph",
    "LightTasks",
    "Parcel",
    "RunMark",
    "TaskMemory",
    "bind_files",
    "check_adapter_config",
    "check_complete",
    "check_runs_no_code",
    "copy_cut",
    "differences",
    "discard_unfinished",
    "export_full_adapter",
    "export_gguf",
    "export_merged",
    "export_onnx",
    "export_torch",
    "export_transformers",
    "find_folder",
    "guard",
    "is_complete",
    "is_light_checkpoint",
    "is_sealed",
    "keep_adapter",
    "keep_newest",
    "keep_packing",
    "kind_of",
    "last_complete_checkpoint",
    "load",
    "load_cut",
    "load_merged",
    "mark_complete",
    "on_floats",
    "origin_of",
    "own_tensors",
    "pack",
    "quantisation_of",
    "read_merged",
    "read_record",
    "refuse_marked",
    "refuse_marked_model",
    "requantise",
    "require_complete",
    "require_floats",
    "require_same_outputs",
    "require_unused",
    "restore_tensors",
    "run_of",
    "save",
    "save_with_state",
    "seal_weights",
    "send",
    "unmark",
    "write_cut",
]
