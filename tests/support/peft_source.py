"""peft's own behaviour tests, from its source distribution: fetched when a test asks, never kept here."""

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

CACHE = Path(__file__).resolve().parents[2] / ".pytest_cache" / "peft-source"
PACKAGE = "peft_source_tests"
SECONDS = 120


def common_tester() -> Any:
    """The class `PeftCommonTester` of the installed version of peft; skips the calling module without it."""
    try:
        folder = _unpacked(importlib.metadata.version("peft"))
    except (subprocess.SubprocessError, OSError, tarfile.TarError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        pytest.skip(
            f"peft's source distribution cannot be fetched: {reason.strip()[-300:]}", allow_module_level=True
        )
    return _imported(folder / "tests").PeftCommonTester


def _unpacked(version: str) -> Path:
    """The folder of the source distribution, fetched by pip where it is not in the cache yet."""
    folder = CACHE / f"peft-{version}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "lock", timeout=2 * SECONDS):
        if not folder.is_dir():
            _fetch(version)
            staging = CACHE / "staging"
            with tarfile.open(CACHE / f"peft-{version}.tar.gz") as archive:
                archive.extractall(staging, filter="data")
            (staging / folder.name).rename(folder)
    return folder


def _fetch(version: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    # peft builds with setuptools, which is here: no second environment for it.
    command += ["--no-build-isolation", "--disable-pip-version-check", "--dest", str(CACHE)]
    subprocess.run(
        [*command, f"peft=={version}"], check=True, capture_output=True, text=True, timeout=SECONDS
    )


def _imported(tests: Path) -> types.ModuleType:
    """peft's module `tests.testing_common`, under a name that is not ours."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(tests)]
    sys.modules[PACKAGE] = package
    missing = importlib.util.find_spec("diffusers") is None
    if missing:  # imported there for one isinstance
        stand_in = types.ModuleType("diffusers")
        stand_in.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
        sys.modules["diffusers"] = stand_in
    try:
        return importlib.import_module(f"{PACKAGE}.testing_common")
    finally:
        if missing:
            del sys.modules["diffusers"]
