"""Reading local files: every format gives the same rows, every damage names its place."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightpeft.tasks import TaskError
from lightpeft.tasks.files import find_files, read_table

ROWS = [
    {"text": "plain", "label": "a"},
    {"text": 'quotes " and , commas', "label": "b"},
    {"text": "two\nlines and NA", "label": "a"},
    {"text": "Größe \u2028 naïve", "label": "b"},
]
SPLITS = {"train": ("train",), "validation": ("validation_matched", "validation")}


def write_csv(path: Path, delimiter: str = ",") -> None:
    quoted = [['"' + value.replace('"', '""') + '"' for value in row.values()] for row in ROWS]
    lines = [["text", "label"], *quoted]
    path.write_text("".join(delimiter.join(line) + "\r\n" for line in lines), encoding="utf-8")


def write_jsonl(path: Path) -> None:
    lines = (json.dumps(row, ensure_ascii=False) for row in ROWS)
    path.write_text("\n\n".join(lines), encoding="utf-8")


WRITERS: dict[str, Callable[[Path], object]] = {
    ".csv": write_csv,
    ".tsv": lambda path: write_csv(path, "\t"),
    ".jsonl": write_jsonl,
    ".json": lambda path: path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8"),
    ".parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    WRITERS[ending](tmp_path / f"train{ending}")
    table = read_table(find_files(tmp_path, SPLITS)["train"])
    assert table.names == ("text", "label")
    assert table.column("text") == [row["text"] for row in ROWS]
    assert table.column("label") == [row["label"] for row in ROWS]
    assert table.untyped == (ending in (".csv", ".tsv"))


def test_json_may_hold_one_object_a_line_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "a", "label": 1}\n{"label": 2}\n')
    table = read_table(path)
    assert table.column("text") == ["a", None]
    assert table.column("label") == [1, 2]


DAMAGED: list[tuple[str, bytes, str]] = [
    ("a.csv", b"text,label\nna\xefve,1\n", r"a\.csv is not UTF-8: byte 0xef at byte offset 13;"),
    ("a.jsonl", b'\xef\xbb\xbf{"text": "\xe9"}', r"byte 0xe9 at byte offset 13;"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": "b}\n', r"line 3, column 10: not valid JSON"),
    ("a.json", b'[\n{"text": 1},\n{"text" 2}]', r"line 3, column 9: not valid JSON"),
    ("a.jsonl", b'{"text": "a"}\n[1]\n', r"row 2: expected a JSON object, found list"),
    ("a.jsonl", b'{"text": "a", "text": "b"}\n', r"line 1: 'text' appears twice"),
    ("a.csv", b"text,label,text\na,1,b\n", r"more than one column named 'text'"),
    ("a.csv", b"text,label\na,1\nb,c,1\n", r"line 3: 3 fields, but the header has 2"),
    ("a.csv", b'text,label\n"a,1\n', r"line 2: unexpected end of data; quote"),
    ("a.tsv", b'text\tlabel\n"a" b\t1\n', r"line 2: .*; quote fields"),
    ("a.parquet", b"no parquet at all", r"not a readable parquet file"),
    ("a.doc", b"text", r"unknown ending; give one of '\.parquet', '\.csv'"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED, ids=lambda value: str(value)[:40])
def test_damage_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        read_table(tmp_path / name)


def test_doubled_parquet_columns_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(TaskError, match="more than one column named 'text'"):
        read_table(tmp_path / "train.parquet")


def test_the_first_accepted_name_of_a_split_wins(tmp_path: Path) -> None:
    for name in ("train.csv", "validation.csv", "validation_matched.jsonl", "notes.csv"):
        (tmp_path / name).write_text("")
    found = find_files(tmp_path, SPLITS)
    assert {split: path.name for split, path in found.items()} == {
        "train": "train.csv",
        "validation": "validation_matched.jsonl",
    }


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("")
    (tmp_path / "train.parquet").write_text("")
    with pytest.raises(TaskError, match=r"more than one file .* 'train.parquet', 'train.csv'"):
        find_files(tmp_path, SPLITS)


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("")
    with pytest.raises(TaskError, match=r"nowhere does not exist; give a folder"):
        find_files(tmp_path / "nowhere", SPLITS)
    with pytest.raises(TaskError, match=r"train\.csv is a file; give a folder"):
        find_files(tmp_path / "train.csv", SPLITS)
    with pytest.raises(TaskError, match=r"file of split 'train' does not exist"):
        find_files({"train": tmp_path / "other.csv"}, SPLITS)
    with pytest.raises(TaskError, match=r"unknown split 'valid'\. Did you mean 'validation'\?"):
        find_files({"valid": tmp_path / "train.csv"}, SPLITS)


def test_files_can_be_named_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "mine.CSV").write_text("text,label\n")
    assert find_files({"train": str(tmp_path / "mine.CSV")}, SPLITS) == {"train": tmp_path / "mine.CSV"}
