"""Merged folders in transformers' tables of models."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from transformers.models.auto import modeling_auto

from lightpeft.errors import CheckpointError
from lightpeft.registered.configuration import CutConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TAKEN = frozenset({"config", "dtype", "torch_dtype", "attn_implementation"})
_FETCHED_BY = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_OF_NO_ACCOUNT = frozenset(
    {
        *("trust_remote_code", "code_revision", "use_safetensors", "weights_only", "adapter_kwargs"),
        *("low_cpu_mem_usage", "_from_auto", "_commit_hash"),
    }
)
"""Options that change nothing about a cut model: no code and no pickles are read in any case."""

_BOOKKEEPING = frozenset({"dtype", "transformers_version", "use_cache", "attn_implementation"})


class _Cut:
    """What transformers calls to build the model of a merged folder; the model is of its own class."""

    config_class = CutConfig
    auto_class = ""

    @classmethod
    def from_pretrained(cls, folder: str, *_args: Any, **options: Any) -> "PreTrainedModel":
        """`load_merged`, for whoever asks by an auto class.

        Raises:
            CheckpointError: see `load_cut`; or an option that a cut model cannot follow.
        """
        import torch

        from lightpeft.checkpoint import load_cut  # which may itself be what imports this module

        _refuse_others(options)
        local = _local(folder, options)
        _require_as_it_was(options.get("config"), local)
        model = load_cut(local, cls.auto_class, options.get("attn_implementation"))
        dtype = options.get("dtype", options.get("torch_dtype"))
        wanted = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        return model if wanted is None else model.to(wanted)

    @classmethod
    def _from_config(cls, *_args: Any, **_options: Any) -> "PreTrainedModel":
        raise CheckpointError(
            "a cut model is not built from its configuration alone, which does not say what was cut; use "
            "from_pretrained(FOLDER)."
        )


def _local(folder: str, options: dict[str, Any]) -> str:
    """The folder itself, or where the hub's files of that name lie."""
    if Path(folder).is_dir():
        return folder
    given = {name: options[name] for name in _FETCHED_BY if options.get(name) is not None}
    return str(snapshot_download(folder, allow_patterns=["*.json", "*.safetensors"], **given))


def _refuse_others(options: dict[str, Any]) -> None:
    odd = sorted(
        name
        for name, value in options.items()
        if name not in _TAKEN.union(_FETCHED_BY, _OF_NO_ACCOUNT) and value not in (None, False, "")
    )
    if odd:
        raise CheckpointError(
            f"a cut model is loaded without {', '.join(odd)}; leave it out, and move or convert the model "
            "afterwards."
        )


def _require_as_it_was(config: CutConfig | None, folder: str) -> None:
    """Refuse a configuration that was changed on the way: the model is built by the folder's own."""
    if config is None:
        return
    own = CutConfig.from_pretrained(folder).to_dict()
    given = config.to_dict()
    odd = sorted(
        name
        for name in own.keys() | given.keys()
        if not name.startswith("_") and name not in _BOOKKEEPING and own.get(name) != given.get(name)
    )
    if odd:
        raise CheckpointError(
            f"{odd[0]} is given as {given.get(odd[0])!r}, but {folder} was saved with {own.get(odd[0])!r}; a "
            "cut model keeps its configuration."
        )


for _name, _auto in vars(modeling_auto).items():
    if _name.startswith("AutoModel") and hasattr(_auto, "_model_mapping"):
        _auto.register(CutConfig, type(f"Cut{_name}", (_Cut,), {"auto_class": _name}))
