"""What is kept of each example comes back as it was, or not at all; and which example a row is."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightpeft.training.prefix import RowCache
from lightpeft.training.prefix.examples import Batch, UnknownInputError

ROW = torch.arange(12.0).view(3, 4)
SIZE = ROW.nbytes
PLACES = {"memory": (10 * SIZE, 0), "disk": (0, 10 * SIZE), "both": (SIZE, 10 * SIZE)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_come_back(place: str, dtype: torch.dtype, tmp_path: Path) -> None:
    cache = RowCache(*PLACES[place], tmp_path)
    rows = {bytes([i]): (ROW * i).to(dtype) for i in range(5)}
    for key, row in rows.items():
        cache.put(key, row)
    assert not list(tmp_path.iterdir()), "the file has no name"
    for key, row in rows.items():
        found = cache.get(key)
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, row)
    assert cache.get(b"other") is None
    cache.close()
    assert cache.get(bytes([1])) is None


def test_a_narrower_dtype_rounds_and_gives_back_the_dtype_that_came(tmp_path: Path) -> None:
    cache = RowCache(SIZE // 2, 0, tmp_path, torch.bfloat16)
    cache.put(b"a", ROW / 3)
    found = cache.get(b"a")
    assert found is not None
    assert found.dtype == torch.float32
    assert torch.equal(found, (ROW / 3).bfloat16().float())


def test_budgets_are_held(tmp_path: Path) -> None:
    cache = RowCache(2 * SIZE, 2 * SIZE, tmp_path)
    for i in range(6):
        cache.put(bytes([i]), ROW)
    assert [bytes([i]) in cache for i in range(6)] == [True] * 4 + [False] * 2


def test_a_row_is_stored_once(tmp_path: Path) -> None:
    cache = RowCache(2 * SIZE, 0, tmp_path)
    for _ in range(5):
        cache.put(b"a", ROW)
    cache.put(b"b", ROW)
    assert b"b" in cache


def damage(file: int) -> None:
    os.pwrite(file, b"\xff", 5)


def truncate(file: int) -> None:
    os.ftruncate(file, SIZE // 2)


@pytest.mark.parametrize("harm", [damage, truncate])
def test_a_damaged_row_is_missing_and_can_be_stored_again(harm: Any, tmp_path: Path) -> None:
    cache = RowCache(0, 10 * SIZE, tmp_path)
    cache.put(b"a", ROW)
    cache.put(b"b", ROW)
    harm(cache._file)
    assert cache.get(b"a") is None
    cache.put(b"a", ROW)
    found = cache.get(b"a")
    assert found is not None
    assert torch.equal(found, ROW)


def test_a_full_disk_ends_the_storing_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RowCache(0, 10 * SIZE, tmp_path)
    cache.put(b"a", ROW)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache.put(b"b", ROW)
    assert b"b" not in cache
    assert cache.get(b"a") is not None


def batch(rows: list[list[int]], length: int, side: str = "right", **more: Tensor) -> Batch:
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    return Batch({"input_ids": ids, "attention_mask": mask, **more}, "input_ids")


def test_a_key_does_not_know_the_padding_or_the_company() -> None:
    first = batch([[1, 2, 3], [4, 5]], 3).keys(by_token=True)
    second = batch([[4, 5], [9], [1, 2, 3]], 8).keys(by_token=True)
    assert first == [second[2], second[0]]


def test_a_key_knows_where_the_tokens_stand() -> None:
    """Left padding gives a model with absolute positions other ones."""
    right, left = batch([[1, 2]], 4), batch([[1, 2]], 4, "left")
    assert right.keys(by_token=True) != left.keys(by_token=True)


@pytest.mark.parametrize("other", [[1, 2, 4], [1, 2], [1, 2, 3, 0]])
def test_other_tokens_are_another_example(other: list[int]) -> None:
    assert batch([[1, 2, 3]], 4).keys(by_token=True) != batch([other], 4).keys(by_token=True)


def test_every_argument_of_an_example_counts() -> None:
    types = torch.tensor([[0, 0, 1]])
    keys = {
        batch([[1, 2, 3]], 3, **more).keys(by_token=True)[0]
        for more in ({}, {"token_type_ids": types}, {"token_type_ids": 1 - types}, {"image": types[:, :2]})
    }
    assert len(keys) == 4


def test_what_has_no_effect_below_does_not_count() -> None:
    ids = {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    plain = Batch(ids, "input_ids").keys(by_token=False)
    more = {"use_cache": True, "num_items_in_batch": torch.tensor(7), "labels": torch.ones(2)}
    assert Batch(ids | more, "input_ids").keys(by_token=False) == plain
    assert Batch(ids | {"scale": 2.0}, "input_ids").keys(by_token=False) != plain


def test_some_rows_of_a_batch() -> None:
    chosen = batch([[1], [2], [3]], 2, scale=torch.ones(())).rows([2, 0])
    assert chosen["input_ids"][:, 0].tolist() == [3, 1]
    assert chosen["scale"].shape == ()


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": torch.ones(2, 3), "more": [1, 2]},
        {"labels": torch.ones(2)},
        {"input_ids": torch.tensor(1)},
    ],
    ids=["a list", "nothing to tell examples by", "no examples"],
)
def test_what_cannot_be_told_apart_is_said(inputs: dict[str, Any]) -> None:
    with pytest.raises(UnknownInputError, match="told apart"):
        Batch(inputs, "input_ids")
