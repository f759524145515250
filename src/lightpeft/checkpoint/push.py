"""A checkpoint on its way to the hub: what others need of it, a card, and no paths of this machine."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, get_token, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import nn

from lightpeft.adapters import FORMS
from lightpeft.checkpoint.card import Card
from lightpeft.checkpoint.format import (
    CARD,
    LIGHT,
    MERGED,
    PRUNING,
    files_to_read,
    has_tokenizer,
    kind_of,
    read_merged,
    read_record,
    sealed,
)
from lightpeft.checkpoint.hub_names import can_be_hub_name, hub_name
from lightpeft.errors import CheckpointError, ConfigError, LightPeftError, OutputError
from lightpeft.files import file_sha256, json_bytes, read_json
from lightpeft.plan import Plan

logger = logging.getLogger(__name__)

MESSAGE = "Upload by lightpeft"

_CONFIGS = {"adapter_config.json": "base_model_name_or_path", "config.json": "_name_or_path"}
"""Files that name the base, and the key that does."""

_LICENCE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Parcel:
    """What is sent: by the name in the repository, a file as it is here, or other content."""

    files: dict[str, Path | bytes]

    @property
    def card(self) -> str:
        """README.md."""
        return _content(self.files[CARD]).decode()

    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {
            name: len(one) if isinstance(one, bytes) else one.stat().st_size
            for name, one in self.files.items()
        }


def pack(directory: Path, repo: str, *, base: str | None = None, ask_hub: bool = True) -> Parcel:
    """What `load` or `load_merged` needs of a checkpoint, and a card.

    The base goes by its name on the hub, if that is known, or by the last part of its folder's name; the
    folder of the task's data is left out. A card that somebody wrote or edited goes as it is.

    Args:
        repo: what the card calls the checkpoint.
        base: the base's name on the hub.
        ask_hub: ask the hub for the base's card, whose licence goes into this one.

    Raises:
        CheckpointError: no light or merged checkpoint, a damaged one, or one with a mark of the audit.
        ConfigError: `base` or `repo` is no name that the hub could know.
    """
    for name, what in ((repo, "the repository"), (base, "the base")):
        if name is not None and not can_be_hub_name(name):
            raise ConfigError(f"{name!r} cannot be the name of {what} on the hub; give it as user/name.")
    plan, raw = _checked(directory), read_json(directory / PRUNING)
    described, task = raw.get("base") or {}, raw.get("task")
    here = str(described.get("name_or_path") or "")
    known, revision = hub_name(here)
    if base is not None and base != known:
        known, revision = base, None
    elif known == here:
        revision = described.get("revision")
    if known is None and raw["kind"] == LIGHT:
        logger.warning(
            "the base, %s, is a folder of this machine: whoever loads %s has to give it as base=. If it is "
            "on the hub, say its name there (--base).",
            here or "which has no name",
            repo,
        )
    name = known or Path(here).name
    files: dict[str, Path | bytes] = {**files_to_read(directory), **_renamed(directory, name)}
    raw |= {
        "base": described | {"name_or_path": name, "revision": revision},
        "task": task | {"data": None} if isinstance(task, dict) and "data" in task else task,
        "files": raw["files"] | {key: _sha256(files[key]) for key in _CONFIGS if key in files},
    }
    files[PRUNING] = json_bytes(sealed(raw))
    licence = _licence(here, known, ask_hub=ask_hub)
    card = Card(raw, plan, _form(directory), known, repo, has_tokenizer(directory), licence)
    files[CARD] = _somebodys_card(directory, raw["files"]) or str(card).encode()
    return Parcel(files)


def send(
    parcel: Parcel,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = MESSAGE,
    description: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
) -> str:
    """Commit a parcel to a repository of the hub, which is made if it is not there; other files in it stay.

    Args:
        private: what a new repository is, by default as its owner has chosen; one that is there and public is
            refused.
        revision: the branch, which is made if it is not there; by default the main one.
        description: of the commit, below its message.
        token: by default the one that huggingface_hub finds.
        create_pr: propose the commit instead.

    Returns:
        the address of the commit.

    Raises:
        ConfigError: there is no token, or the hub must not be asked (HF_HUB_OFFLINE).
        OutputError: the hub cannot be reached or refuses, or a repository that should be private is not.
    """
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing is sent to the hub; unset it, or use --dry_run.")
    if not isinstance(token, str) and get_token() is None:
        raise ConfigError("there is no token for the hub; log in (hf auth login), or set HF_TOKEN.")
    operations = [CommitOperationAdd(name, one) for name, one in parcel.files.items()]
    with _hub_asked(repo):
        api = HfApi(token=token)
        made = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if private and not api.model_info(made).private:
            raise OutputError(f"{made} is there already and is public; nothing was sent.")
        if revision is not None and not create_pr:
            api.create_branch(made, branch=revision, exist_ok=True)
        commit = api.create_commit(
            made,
            operations,
            commit_message=message,
            commit_description=description,
            revision=revision,
            create_pr=create_pr,
        )
        return str(commit.pr_url or commit.commit_url)


def push_model(
    self: nn.Module,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = None,
    tags: list[str] | None = None,
) -> str:
    """`push_to_hub` of a cut model: what its `save_pretrained` writes, with lightpeft's card.

    Raises:
        CheckpointError: the model cannot be saved, or an option has no effect on it.
        ConfigError, OutputError: see `send`.
    """
    del max_shard_size  # one file in any case
    if tags:
        raise CheckpointError("the card of a cut model has its own tags; leave tags= out, or edit the card.")
    with TemporaryDirectory() as folder:
        model: Any = self
        model.save_pretrained(folder)
        return send(
            pack(Path(folder), repo_id),
            repo_id,
            private=private,
            revision=revision,
            message=commit_message or MESSAGE,
            description=commit_description,
            token=token,
            create_pr=create_pr,
        )


def _checked(directory: Path) -> Plan:
    kind = kind_of(directory)
    if kind == LIGHT:
        return read_record(directory)[0].plan
    if kind == MERGED:
        return read_merged(directory)[0].plan
    raise CheckpointError(
        f"{directory} is no light checkpoint ({PRUNING} is missing in it). Other forms are uploaded by "
        "`hf upload`."
    )


def _renamed(directory: Path, base: str) -> dict[str, bytes]:
    """The configurations that name the base, with another name."""
    found = {name: read_json(directory / name) for name in _CONFIGS if (directory / name).is_file()}
    return {
        name: json_bytes(values | {_CONFIGS[name]: base})
        for name, values in found.items()
        if _CONFIGS[name] in values
    }


def _form(directory: Path) -> str | None:
    if not (directory / "adapter_config.json").is_file():
        return None
    return FORMS[read_json(directory / "adapter_config.json")["peft_type"]].title


def _somebodys_card(directory: Path, digests: Mapping[str, str]) -> bytes | None:
    """A card that is not the one that was saved with the checkpoint."""
    path = directory / CARD
    if not path.is_file() or file_sha256(path) == digests.get(CARD):
        return None
    return path.read_bytes()


def _licence(folder: str, known: str | None, *, ask_hub: bool) -> dict[str, str]:
    """The base's, by the front matter of its own card; nothing if that does not tell."""
    path = Path(folder, CARD)
    try:
        if known is not None and not path.is_file():
            path = Path(hf_hub_download(known, CARD, local_files_only=not ask_hub))
        values = ModelCard.load(path).data.to_dict() if path.is_file() else {}
    except Exception as error:  # of the network, or a card that is none: it is a nicety
        logger.debug("no licence of the base %s: %s", known or folder, error)
        return {}
    return {key: str(values[key]) for key in _LICENCE if values.get(key)}


@contextmanager
def _hub_asked(repo: str) -> Iterator[None]:
    try:
        yield
    except LightPeftError:
        raise
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} cannot be the name of a repository: {error}") from error
    except HfHubHTTPError as error:
        raise OutputError(f"the hub refused {repo}: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise OutputError(f"the hub refused what was sent: {error}") from error
    except Exception as error:  # whatever the client of the day raises where there is no network
        raise OutputError(f"the hub cannot be reached: {type(error).__name__}: {error}") from error


def _content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _sha256(file: Path | bytes) -> str:
    return hashlib.sha256(file).hexdigest() if isinstance(file, bytes) else file_sha256(file)
