"""Where a base came from: what its folder or hub name gives today, and how that differs from it in memory."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from torch import nn
from transformers import PreTrainedModel

from lightpeft.anatomy import base_of
from lightpeft.checkpoint.base import (
    DTYPES,
    TOKENS,
    describe_base,
    hollow_with_gaps,
    load_with_gaps,
    own_config,
    paddings,
)
from lightpeft.checkpoint.hollow import Places, UnreadWeights
from lightpeft.checkpoint.hub_names import is_hub_name
from lightpeft.checkpoint.replaced import describe_replaced, put_replaced
from lightpeft.errors import CheckpointError
from lightpeft.surgery import PACKED, base_digests, digest_of, other_tensors, record_of

logger = logging.getLogger(__name__)

_ATTRIBUTE = "lightpeft_origin"
_LEARNT = ("revision", "dtype", "replaced", "config")
_MOST_DIFFER = 0.5
"""If more of the weights differ than this, they went through another dtype or are of another revision."""


@dataclass(frozen=True)
class Origin:
    """What loading the base anew gives, and the description by which it was loaded."""

    described: dict[str, Any]
    digests: dict[str, str]
    """Of the base loaded anew, in the dtypes of the one in memory; without what came out random."""

    buffers: dict[str, str]
    known: bool = True
    """False if there is nothing to load from, or it cannot be loaded."""

    @property
    def folder(self) -> str | None:
        """Where it was loaded from, if that is a local folder; the description may give it another name."""
        name = self.described["name_or_path"]
        return name if Path(name).is_dir() else None


def origin_of(model: nn.Module) -> Origin:
    """Load the base of `model` anew, as `load` will, once per model, and note what comes out.

    Weights that differ from the ones in memory will have to be stored; `own_tensors` finds them.
    """
    base = base_of(model)
    found: Origin | None = getattr(base, _ATTRIBUTE, None)
    described = describe_base(model)
    if found is None or _built_with(found.described) != _built_with(described):
        found = _find(base, described, _digests_of_uncut(model))
        setattr(base, _ATTRIBUTE, found)
    return found


def inherit_origin(model: nn.Module, other: nn.Module) -> None:
    """Of two models on the same base, let `model` have the origin that `other` has."""
    setattr(base_of(model), _ATTRIBUTE, origin_of(other))


def describe_with_origin(model: nn.Module) -> dict[str, Any]:
    """`describe_base` with what only loading the base anew tells: revision, dtypes, replaced modules."""
    found = origin_of(model).described
    return describe_base(model) | {key: found[key] for key in _LEARNT if key in found}


def _built_with(described: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what may change after a model was built."""
    return {key: value for key, value in described["config"].items() if key not in TOKENS}


def _digests_of_uncut(model: nn.Module) -> dict[str, str]:
    record = record_of(model)
    return base_digests(model) if record is None else record.base


def _find(base: PreTrainedModel, described: dict[str, Any], wanted: Mapping[str, str]) -> Origin:
    best: tuple[float, Origin] | None = None
    failure: CheckpointError | None = None
    for candidate in _candidates(described):
        try:
            share, origin = _try(base, candidate, wanted)
        except CheckpointError as error:
            failure = failure or error
            continue
        if best is None or share < best[0]:
            best = share, origin
        if share < _MOST_DIFFER:
            break
    if best is not None:
        return best[1]
    if described["name_or_path"]:
        logger.warning("lightpeft: load() will not find this run's base by itself: %s", failure)
    return Origin(described, {}, {}, known=False)


def _candidates(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Ways in which the base may have been loaded: revision, tokens, and the dtype that it went through."""
    name = described["name_or_path"]
    for revision in (*_cached_revisions(name), None):
        for config in _configs(described["config"], name, revision):
            for dtype in dict.fromkeys([described["dtype"], *map(str, (torch.bfloat16, torch.float16))]):
                yield described | {"revision": revision, "dtype": dtype, "config": config}


def _configs(config: dict[str, Any], name: str, revision: str | None) -> Iterator[dict[str, Any]]:
    """The configuration as it is, and with the tokens of the base's own, if it was built with those."""
    yield config
    try:
        own = own_config(name, revision)
    except OSError:
        return
    first = {key: own[key] for key in TOKENS if key in own and own[key] != config.get(key)}
    if first:
        yield config | first


def _cached_revisions(name: str) -> list[str]:
    """Commits of a hub repository that are on this machine, the one that `main` names first."""
    if not is_hub_name(name):
        return []
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    snapshots = folder / "snapshots"
    commits = sorted(path.name for path in snapshots.iterdir()) if snapshots.is_dir() else []
    main = folder / "refs" / "main"
    first = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    return sorted(commits, key=lambda commit: commit != first)


def _try(base: PreTrainedModel, described: dict[str, Any], wanted: Mapping[str, str]) -> tuple[float, Origin]:
    """The origin by one description, and the share of weights that it gives otherwise than in memory."""
    fresh, gaps = load_with_gaps(described)
    described = described | {"replaced": describe_replaced(base, fresh, wanted)}
    if None in described["replaced"].values():
        _warn_of_modules(described["replaced"])
        return 0.0, Origin(described, {}, {}, known=False)
    blank = _complete(fresh, gaps, described, wanted)
    digests = {
        name: digest_of(parameter.detach())
        for name, parameter in fresh.named_parameters()
        if name not in blank
    }
    seen = {name: digest for name, digest in digests.items() if not wanted.get(name, "").endswith(PACKED)}
    buffers = {name: digest_of(buffer) for name, buffer in fresh.named_buffers()}
    odd = seen if paddings(fresh) != described["padding"] else other_tensors(seen, wanted)
    return len(odd) / max(1, len(seen)), Origin(described, digests, buffers)


def _warn_of_modules(replaced: Mapping[str, Any]) -> None:
    names = ", ".join(name for name, structure in replaced.items() if structure is None)
    logger.warning(
        "lightpeft: %s of the base was replaced by modules that load() cannot build by itself; whoever loads "
        "this run's checkpoints has to build the base with them and pass it as base=.",
        names,
    )


def rebuild_base(
    described: Mapping[str, Any], wanted: Mapping[str, str], path: str | None, attention: str | None
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The base of a checkpoint, built anew, and the parameters that the checkpoint has to fill.

    Args:
        described: what `describe_with_origin` gave.
        wanted: digests of the base that was cut; only their dtypes are used here.
        path: folder or hub name that takes the place of the described one.

    Raises:
        CheckpointError: see `load_with_gaps`.
    """
    base, gaps = load_with_gaps(described, path, attention)
    return base, _complete(base, gaps, described, wanted)


def rebuild_hollow(
    described: Mapping[str, Any], wanted: Mapping[str, str], path: str | None, attention: str | None
) -> tuple[PreTrainedModel, frozenset[str], UnreadWeights] | None:
    """`rebuild_base` without reading its weights, and the way to read them; None where that cannot be done.

    Raises:
        CheckpointError: see `load_with_gaps`.
    """
    found = hollow_with_gaps(described, path, attention)
    if found is None:
        return None
    base, gaps, places = found
    blank = _complete(base, gaps, described, wanted, places)
    return base, blank, UnreadWeights(base, places)


def _complete(
    base: nn.Module,
    gaps: frozenset[str],
    described: Mapping[str, Any],
    wanted: Mapping[str, str],
    places: Places | None = None,
) -> frozenset[str]:
    """Put in what was replaced, in the dtypes that were; the names of what then is random."""
    new = tuple(f"{name}." for name in put_replaced(base, described.get("replaced") or {}))
    _cast_to(base, wanted, places or Places())
    return frozenset(
        name for name, _ in base.named_parameters() if name in gaps or (new and name.startswith(new))
    )


def _cast_to(base: nn.Module, wanted: Mapping[str, str], places: Places) -> None:
    """Give each parameter of `base` the dtype that its digest in `wanted` names, also one without values."""
    for name, parameter in base.named_parameters():
        dtype = DTYPES.get(f"torch.{wanted.get(name, '').partition(' ')[0]}", parameter.dtype)
        if parameter.dtype != dtype:
            place = places.of(parameter)
            parameter.data = (
                parameter.data.to(dtype) if place is None else places.note(place, parameter.shape, dtype)
            )
