"""Load a base, with a fresh task head where it needs one, and put an adapter on it."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from lightpeft.anatomy import FAMILIES, base_of
from lightpeft.anatomy.families.decoders import DECODERS
from lightpeft.checkpoint import origin_of, refuse_marked
from lightpeft.errors import AnatomyError, CheckpointError, ConfigError, LightPeftError
from lightpeft.run_config import MINILM, PeftOptions
from lightpeft.runs.continued import continue_adapter
from lightpeft.runs.minilm import minilm_path
from lightpeft.runs.peft_configs import peft_config
from lightpeft.runs.quantization import prepared
from lightpeft.surgery import verify_discovered
from lightpeft.tasks import TaskKind, find_kind

logger = logging.getLogger(__name__)


def resolve_model(name: str) -> str:
    """Where `name` is loaded from: itself, or the packaged copy of the demo's model if that is asked for."""
    return str(minilm_path()) if name == MINILM else name


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base; without a padding token of its own it pads with the EOS token.

    Raises:
        ConfigError: it cannot be found, or has neither of the two.
    """
    require_folder(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve_model(name))
    except Exception as error:  # A damaged file can be anything to the library that reads it.
        raise ConfigError(f"the tokenizer of {name!r} cannot be loaded: {first_line(error)}") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"the tokenizer of {name!r} has neither a padding token nor an EOS token to pad with; set "
                "tokenizer.pad_token to one of its tokens and save it beside the base."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def first_line(error: Exception) -> str:
    """An error of a library in one line, with the error's name where the text alone says little."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (
        text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__} {text}".strip()
    )


def require_folder(name: str, what: str = "model") -> None:
    """Do not ask the hub for what can only be a folder.

    Raises:
        ConfigError: there is no such folder.
    """
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if looks_local and not Path(name).is_dir():
        found = "is a file" if Path(name).exists() else "does not exist"
        raise ConfigError(f"the {what} {name!r} {found}; give the folder of a {what}, or a hub name.")


def load_peft_model(
    name: str,
    head: Mapping[str, Any] | None,
    peft: PeftOptions | PeftConfig,
    seed: int,
    objective: str = "sequence-classification",
    *,
    marked_too: bool = False,
    quantization: BitsAndBytesConfig | None = None,
) -> PeftModel:
    """A base from the hub or a folder with an adapter, trainable, and with a new head where one is needed.

    Modules that the checkpoint does not have (heads, some poolers) are trained and saved with the adapter.

    Args:
        head: options of the head for `from_pretrained`; None where the base's own is used.
        peft: what to put on it; a configuration of PEFT's own is taken as it is.
        marked_too: also a base or an adapter that the audit marked as poisoned; for the audit itself.
        quantization: how the base is kept, see `quantization_config`.

    Raises:
        ConfigError: the model or the adapter to go on from cannot be loaded, or they do not fit.
        AnatomyError: nothing of its architecture can be cut, or it cannot predict the next token.
    """
    path, kind = resolve_model(name), find_kind(objective)
    check_architecture(name, kind)
    set_seed(seed)
    # The checkpoint may have a head of its own, for other labels.
    options: dict[str, Any] = {} if head is None else {**head, "ignore_mismatched_sizes": True}
    if quantization is not None:
        options["quantization_config"] = quantization
    try:
        base, info = kind.auto_class.from_pretrained(path, output_loading_info=True, **options)
    except Exception as error:  # A damaged file can be anything to the library that reads it.
        raise ConfigError(f"the model {name!r} cannot be loaded: {first_line(error)}") from error
    if not marked_too:
        _refuse_marked(base, name)
    anatomy = verify_discovered(base)
    new = set(info["missing_keys"]) | _other_head(base, info["mismatched_keys"], name)
    if path != name:
        origin_of(base)  # while its configuration still says where it was loaded from
        base.config._name_or_path = name
    if quantization is not None:
        base = prepared(base)
    if isinstance(peft, PeftOptions):
        if peft.adapter is not None:
            return continue_adapter(base, peft.adapter, new, marked_too=marked_too)
        peft = peft_config(peft, base, anatomy, kind.peft_task, new_modules(base, new))
    return _wrapped(base, peft)


def _wrapped(base: PreTrainedModel, peft: PeftConfig) -> PeftModel:
    """The base with a fresh adapter.

    Raises:
        ConfigError: PEFT refuses the two together.
    """
    try:
        model = get_peft_model(base, peft)
    except LightPeftError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        kind = str(getattr(peft.peft_type, "value", peft.peft_type))
        raise ConfigError(f"PEFT cannot put {kind} on this base: {first_line(error)}") from error
    assert isinstance(model, PeftModel)
    return model


def _refuse_marked(base: PreTrainedModel, name: str) -> None:
    try:
        refuse_marked(vars(base.config), f"the model {name!r}")
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _other_head(base: PreTrainedModel, mismatched: Iterable[Any], name: str) -> set[str]:
    """Parameters of a head that was made for other labels and starts anew.

    Raises:
        ConfigError: it is not the head whose shape differs.
    """
    keys = {entry if isinstance(entry, str) else entry[0] for entry in mismatched}
    inside = sorted(key for key in keys if key.startswith(f"{base.base_model_prefix}."))
    if inside:
        raise ConfigError(f"the weights of {name!r} do not fit its configuration: {', '.join(inside[:3])}.")
    return keys


def new_modules(base: PreTrainedModel, missing: set[str]) -> list[str]:
    """The modules outside an adapter's reach that were not in the checkpoint, as PEFT's `modules_to_save`."""
    prefix = f"{base.base_model_prefix}."
    inside = {key.rsplit(".", 2)[0].removeprefix(prefix) for key in missing if key.startswith(prefix)}
    if any(not name.startswith("pooler") for name in inside):
        logger.warning("the checkpoint lacks weights of the encoder: %s", ", ".join(sorted(inside)))
    heads = {key.split(".")[0] for key in missing if not key.startswith(prefix)}
    saved_by_peft = {"classifier", "score"}
    return sorted(heads - saved_by_peft | {name for name in inside if name.startswith("pooler")})


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a base, from the hub or a folder.

    Raises:
        ConfigError: it cannot be found.
    """
    require_folder(name)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(resolve_model(name))
    except Exception as error:  # A damaged file can be anything to the library that reads it.
        raise ConfigError(
            f"the model {name!r} is neither a folder with a configuration nor a name that the hub (or its "
            f"cache, offline) knows: {first_line(error)}"
        ) from error
    return config


def outline(name: str, auto_class: Any = AutoModel) -> PreTrainedModel:
    """A base on the meta device, from its configuration alone; by default without a head.

    Raises:
        ConfigError: the configuration cannot be found.
        AnatomyError: transformers cannot build such a model.
    """
    config = load_config(name)
    try:
        with torch.device("meta"):
            base: PreTrainedModel = auto_class.from_config(config)
    except Exception as error:  # What does not fit in a configuration fails anywhere.
        raise AnatomyError(
            f"transformers alone cannot build {name!r}, a {config.model_type}, from its configuration: "
            f"{first_line(error)}"
        ) from error
    return base


def pad_as(model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a base without a padding token the tokenizer's: a decoder's classifier finds the end by it."""
    config = base_of(model).config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id


def check_architecture(name: str, kind: TaskKind) -> None:
    """Refuse a base that cannot learn what it shall.

    Raises:
        ConfigError: its configuration cannot be found.
        AnatomyError: it cannot predict the next token, or has no head for this kind.
    """
    model_type = load_config(name).model_type
    if kind.for_decoders is not None and model_type in DECODERS:
        raise AnatomyError(
            f"{name} is a {model_type}, a decoder, which has no head for {kind.name}; take --objective "
            f"{kind.for_decoders} (of a known task with --text and --label, its columns)."
        )
    if kind.only_decoders and model_type in FAMILIES and model_type not in DECODERS:
        raise AnatomyError(
            f"{name} is a {model_type}, which sees a text from both sides and cannot learn to continue one; "
            f"{kind.name} takes {', '.join(DECODERS)}."
        )
