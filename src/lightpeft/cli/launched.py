"""Whether a launcher (torchrun, accelerate launch) started this command beside others. Needs no torch."""

import os

from lightpeft.errors import ConfigError

TOGETHER = ("train",)
"""Verbs that several processes run together."""


def index_of_process() -> int:
    """Which of the processes this is; 0 of one alone."""
    return int(os.environ.get("RANK", "0"))


def count_of_processes() -> int:
    """How many were started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_one_process(verb: str) -> None:
    """Refuse several processes for a verb that each of them would run on its own, into the same files.

    Raises:
        ConfigError: there are several.
    """
    if count_of_processes() > 1 and verb not in TOGETHER:
        raise ConfigError(
            f"{count_of_processes()} processes were started (WORLD_SIZE), and {verb} is of one. Start it "
            f"without torchrun or accelerate launch; {', '.join(TOGETHER)} can have several."
        )
