"""Light checkpoints: written whole or not at all, checked before they are used."""

from lightpeft.checkpoint.format import PRUNING, read_record
from lightpeft.checkpoint.load import check_adapter_config, find_folder, is_light_checkpoint, load
from lightpeft.checkpoint.progress import last_complete_checkpoint, mark_complete, require_complete
from lightpeft.checkpoint.save import save, write_cut

__all__ = [
    "PRUNING",
    "check_adapter_config",
    "find_folder",
    "is_light_checkpoint",
    "last_complete_checkpoint",
    "load",
    "mark_complete",
    "read_record",
    "require_complete",
    "save",
    "write_cut",
]
