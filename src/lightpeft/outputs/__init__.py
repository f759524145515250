"""Where lightpeft writes: whole or not at all, never over what it did not write, one run at a time."""

from lightpeft.outputs.beside import restore_left_behind, written_beside
from lightpeft.outputs.kinds import Output
from lightpeft.outputs.lock import LOCK, locked
from lightpeft.outputs.owned import (
    MANIFEST,
    RECORD,
    check_file,
    check_folder,
    check_room,
    is_own,
    note_own,
    written_file,
    written_folder,
)

__all__ = [
    "LOCK",
    "MANIFEST",
    "RECORD",
    "Output",
    "check_file",
    "check_folder",
    "check_room",
    "is_own",
    "locked",
    "note_own",
    "restore_left_behind",
    "written_beside",
    "written_file",
    "written_folder",
]
