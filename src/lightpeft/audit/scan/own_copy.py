"""The user's own copy of a module: the same form on the same base, trained on the user's clean texts alone.

It knows the task, its words and the form's habits, and was never near the attacker: what a received module
does and the copy does not is what somebody else taught it. Copies are kept in a folder, each under its key.
"""

import dataclasses
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from lightpeft.anatomy import base_of
from lightpeft.audit.errors import AuditError
from lightpeft.audit.marks import require_clean
from lightpeft.audit.module import fresh_module, load_module, save_module
from lightpeft.audit.scan.insertions import Prober
from lightpeft.audit.scan.search import GROUP, sweep
from lightpeft.audit.scan.texts import ScanTexts
from lightpeft.audit.training import train_user
from lightpeft.files import file_sha256, read_json, read_tensors, write_json, write_tensors
from lightpeft.outputs import Output, locked, written_folder
from lightpeft.run_config import TrainingConfig
from lightpeft.runs import load_tokenizer, pad_as
from lightpeft.runs.limits import position_limit

logger = logging.getLogger(__name__)

FORMAT = 1
RECORD, MODULE, SWEPT = "own_copy.json", "module", "swept.safetensors"
TRAINING = TrainingConfig(max_steps=200, warmup_steps=10, batch_size=16, max_length=64)
"""As plain as it is: nothing of it follows the module that is compared. Its precision is the faster one."""
WAIT = 3600.0
"""Seconds to wait for another scan that trains the same copy."""
_OF_NO_FORM = frozenset(
    {"base_model_name_or_path", "inference_mode", "revision", "peft_version", "auto_mapping", "task_type"}
)


@dataclass(frozen=True)
class OwnCopy:
    """A copy that can be asked."""

    model: PeftModel
    prober: Prober
    swept: Tensor
    """(groups, classes): what it makes of the vocabulary, see `sweep`."""


def default_place() -> Path:
    """Where copies are kept unless somebody says otherwise: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightpeft" / "own-copies"


def own_copy(module: Path, base: str, fingerprint: str, texts: ScanTexts, seed: int, place: Path) -> OwnCopy:
    """The copy from its place, or trained and put there.

    Args:
        module: folder of the received module, whose configuration was checked; its weights are not read.
        fingerprint: of the base.
        place: folder of copies.

    Raises:
        AuditError: what is kept under its key is damaged.
        CheckpointError: see `fresh_module`.
    """
    key = copy_key(module, fingerprint, texts, seed)
    folder = place / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    with locked(folder.with_suffix(".busy"), WAIT):
        if not folder.is_dir():
            _train(module, base, texts, seed, folder, key)
    return _loaded(folder, base, key)


def copy_key(module: Path, fingerprint: str, texts: ScanTexts, seed: int) -> dict[str, Any]:
    """What a copy depends on, as JSON values."""
    config = read_json(module / CONFIG_NAME)
    form = {name: _sorted(value) for name, value in config.items() if name not in _OF_NO_FORM}
    return {
        "format": FORMAT,
        "base": fingerprint,
        "form": {name: value for name, value in form.items() if not name.startswith("lightpeft")},
        "texts": texts.digest,
        "training": dataclasses.asdict(TRAINING),
        "group": GROUP,
        "seed": seed,
    }


def _sorted(value: Any) -> Any:
    """PEFT writes sets in any order."""
    is_names = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return sorted(value) if is_names else value


def _train(module: Path, base: str, texts: ScanTexts, seed: int, folder: Path, key: dict[str, Any]) -> None:
    model, tokenizer = fresh_module(module, base, seed=seed), load_tokenizer(base)
    pad_as(model, tokenizer)
    prober = Prober(model, tokenizer)
    training = dataclasses.replace(
        TRAINING,
        seed=seed,
        precision="bfloat16" if prober.precision == torch.bfloat16 else "float32",
        max_length=min(TRAINING.tokens, position_limit(base_of(model)) or TRAINING.tokens),
    )
    logger.info("training your own copy of %s, seed %d, once", module, seed)
    train_user(model, tokenizer, texts.taught, training)
    with written_folder(folder, Output.COPY) as beside:
        save_module(model, beside / MODULE, None)
        write_tensors(beside / SWEPT, {"odds": sweep(prober, tokenizer)}, {})
        write_json(beside / RECORD, {"key": key, "sha256": _digests(beside)})


def _digests(folder: Path) -> dict[str, str]:
    return {name: file_sha256(folder / name) for name in (f"{MODULE}/{SAFETENSORS_WEIGHTS_NAME}", SWEPT)}


def _loaded(folder: Path, base: str, key: dict[str, Any]) -> OwnCopy:
    record = read_json(folder / RECORD)
    if record.get("key") != key or record.get("sha256") != _digests(folder):
        raise AuditError(f"{folder} is not the copy that it should be; delete it, and it is trained anew.")
    require_clean(folder / MODULE)
    model, tokenizer = load_module(folder / MODULE, base), load_tokenizer(base)
    pad_as(model, tokenizer)
    return OwnCopy(model, Prober(model, tokenizer), read_tensors(folder / SWEPT)[0]["odds"])
