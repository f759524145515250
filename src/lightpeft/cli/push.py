"""`lightpeft push`: a checkpoint to the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightpeft.cli.options import run_with_options
from lightpeft.errors import ConfigError

if TYPE_CHECKING:
    from lightpeft.checkpoint import Parcel


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(push, "push", arguments, positional=True)


def push(
    checkpoint: Path,
    repo: str,
    base: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload by lightpeft",
    dry_run: bool = False,
) -> None:
    """Upload what `load` needs of a checkpoint to the hub, with a card. The token is huggingface_hub's.

    Args:
        checkpoint: Folder of a light or merged checkpoint, or of a run.
        repo: Repository, as in user/name; made if it is not there, other files in it stay.
        base: The base's name on the hub, if the checkpoint knows it by a folder of this machine.
        private: Make a private repository; one that is there already has to be private.
        revision: Branch to commit to, made if it is not there; by default the main one.
        message: Message of the commit.
        dry_run: Print the files and the card, and send nothing.
    """
    from lightpeft.checkpoint import pack, send
    from lightpeft.cli.checkpoints import light_folder

    if not checkpoint.is_dir():
        raise ConfigError(f"{checkpoint} is no folder; give that of a light checkpoint.")
    parcel = pack(light_folder(str(checkpoint)), repo, base=base, ask_hub=not dry_run)
    if dry_run:
        print("\n".join([*_files(parcel), "", parcel.card]), end="")
        return
    address = send(parcel, repo, private=private or None, revision=revision, message=message)
    sizes = parcel.sizes().values()
    print(f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB: {address}")


def _files(parcel: "Parcel") -> list[str]:
    return [f"{size:>12,}  {name}" for name, size in sorted(parcel.sizes().items())]
