"""Where a number was measured: versions, processor, commit. Nothing that names a person or a host."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "accelerate", "lightpeft")
_PACKAGE = Path(__file__).resolve().parents[1]


def environment() -> dict[str, Any]:
    """Versions, platform, processor, threads, CUDA device, and the commit of a lightpeft checkout.

    Never fails: what cannot be found is None.
    """
    commit, dirty = _checkout()
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "torch_threads": torch.get_num_threads(),
        "cuda_device": _cuda_device(),
        "git_commit": commit,
        "git_dirty": dirty,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or None


def _cuda_device() -> str | None:
    try:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    except (RuntimeError, AssertionError):
        return None


def _checkout() -> tuple[str | None, bool | None]:
    """Commit, and whether tracked files differ from it, if this package lies in its own checkout."""
    top = _git("rev-parse", "--show-toplevel")
    if not top or Path(top, "src", _PACKAGE.name).resolve() != _PACKAGE:
        return None, None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(_PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
