"""Small files are written whole or not at all, and what is read is checked."""

import os
import platform
from pathlib import Path

import pytest
import torch

from lightpeft.errors import CheckpointError, OutputError
from lightpeft.files import (
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from lightpeft.outputs import (
    LOCK,
    Output,
    locked,
    restore_left_behind,
    written_beside,
    written_file,
    written_folder,
)


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"ä": [1, None, 0.5]})
    assert read_json(tmp_path / "new" / "a.json") == {"ä": [1, None, 0.5]}


def test_json_with_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": 1', b"[" * 100_000])
def test_json_that_is_no_object_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(CheckpointError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_tensors_come_back_with_their_header(tmp_path: Path) -> None:
    tensors = {"t": torch.arange(6.0).view(2, 3).T, "h": torch.ones(2, dtype=torch.bfloat16)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"k": 1})
    read, header = read_tensors(tmp_path / "a.safetensors")
    assert header == {"k": 1}
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


def test_tensors_without_our_header_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"t": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not lightpeft's"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_fails_half_way_leaves_the_old_and_no_litter(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
        (target / "old").write_text("old")
    else:
        target.write_text("old")

    def write() -> None:
        with written_beside(target) as beside:
            if kind == "folder":
                beside.mkdir()
                (beside / "old").write_text("ne")
            else:
                beside.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OutputError, match="disk full"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "old" if kind == "folder" else target).read_text() == "old"


DEAD, LIVING = "4194303", "1"
"""Numbers of processes: above the largest that Linux gives, and its first."""


def test_what_dead_processes_left_is_restored_or_removed(tmp_path: Path) -> None:
    """Where two names cannot be swapped, a process may be killed when only hidden names are there."""
    for name in (
        f".light.{DEAD}.old",
        f".light.{platform.node()}-{DEAD}.part",
        f".light.elsewhere-{DEAD}.part",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / f".light.{LIVING}.part").mkdir()
    assert restore_left_behind(tmp_path / "light")
    assert (tmp_path / "light" / "file").read_text() == f".light.{DEAD}.old"
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= {"light", f".light.{LIVING}.part", f".light.elsewhere-{DEAD}.part"}
    with written_beside(tmp_path / "light") as beside:
        beside.mkdir()
        (beside / "file").write_text("new")
    assert (tmp_path / "light" / "file").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == left - {f".light.{platform.node()}-{DEAD}.part"}


@pytest.mark.parametrize("swaps", [True, False])
def test_a_link_keeps_pointing_to_what_is_replaced(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr("lightpeft.outputs.beside._exchange", lambda one, other: False)
    (tmp_path / "big" / "light").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "big" / "light")
    with written_beside(tmp_path / "link") as beside:
        beside.mkdir()
        (beside / "file").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "big" / "light" / "file").read_text() == "new"
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["light"]


def test_a_link_in_a_folder_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows").write_text("precious")
    with written_folder(tmp_path / "light", Output.LIGHT) as beside:
        beside.mkdir()
    (tmp_path / "light" / "data").symlink_to(tmp_path / "data")
    with (
        pytest.raises(OutputError, match="data, which lightpeft did not write"),
        written_folder(tmp_path / "light", Output.LIGHT),
    ):
        pass
    assert (tmp_path / "data" / "rows").read_text() == "precious"


def test_what_appears_while_writing_is_not_lost(tmp_path: Path) -> None:
    def write() -> None:
        with written_file(tmp_path / "plan.json", Output.PLAN) as beside:
            beside.write_text("{}")
            (tmp_path / "plan.json").write_text("mine")

    with pytest.raises(OutputError, match="exists"):
        write()
    assert (tmp_path / "plan.json").read_text() == "mine"


@pytest.mark.parametrize("owner", [DEAD, LIVING])
def test_a_lock_without_the_systems_help(owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightpeft.outputs.lock.fcntl", None)
    (tmp_path / LOCK).write_text(owner)
    if owner == LIVING:
        with pytest.raises(OutputError, match=r"process 1\) is writing into"), locked(tmp_path):
            pass
    else:
        with locked(tmp_path), locked(tmp_path):
            assert (tmp_path / LOCK).read_text() == str(os.getpid())
        assert not (tmp_path / LOCK).exists()
