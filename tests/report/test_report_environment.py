import importlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from lightpeft.report import environment

module = importlib.import_module("lightpeft.report.environment")


def test_environment_names_versions_and_machine() -> None:
    found = environment()
    assert set(found) == {
        "python",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "lightpeft",
        "platform",
        "cpu",
        "torch_threads",
        "cuda_device",
        "git_commit",
        "git_dirty",
    }
    assert found["python"] == platform.python_version()
    assert found["torch_threads"] == torch.get_num_threads()
    assert all(found[name] for name in ("torch", "transformers", "peft", "accelerate", "lightpeft"))


def test_environment_names_no_host_and_no_folder() -> None:
    text = json.dumps(environment())
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    if len(platform.node()) > 3:
        assert platform.node() not in text


def test_environment_survives_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert (environment()["git_commit"], environment()["git_dirty"]) == (None, None)


@pytest.mark.parametrize(("status", "dirty"), [("", False), (" M README.md", True), (None, None)])
def test_commit_of_its_own_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str | None, dirty: bool | None
) -> None:
    answers = {"--show-toplevel": str(tmp_path), "HEAD": "abc123"}
    monkeypatch.setattr(module, "_PACKAGE", (tmp_path / "src" / "lightpeft").resolve())
    monkeypatch.setattr(
        module,
        "_git",
        lambda command, last, *more: status if command == "status" else answers[last],
    )
    found = environment()
    assert (found["git_commit"], found["git_dirty"]) == ("abc123", dirty)


def test_a_foreign_checkout_around_the_package_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_git", lambda *arguments: str(tmp_path))
    assert environment()["git_commit"] is None


def test_unknown_package_and_processor_are_not_errors(tmp_path: Path) -> None:
    assert module._version("no-such-package-at-all") is None
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor : 0\nmodel name\t: Fast CPU 3000\n", encoding="utf-8")
    assert module._cpu(listing) == "Fast CPU 3000"
    assert module._cpu(tmp_path / "missing") != ""
