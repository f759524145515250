"""Small files are written whole or not at all, and what is read is checked."""

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
from lightpeft.outputs import written_beside


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
