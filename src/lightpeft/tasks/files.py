"""Local files of a task: which file is which split, and what is in it."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightpeft.errors import did_you_mean, listed
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.spec import DataPaths

LONGEST_FIELD = 2**31 - 1
"""Characters; Python's own limit is 131072, which a document may well exceed."""

UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Table:
    """One split before any check: its column names, and the values of a column on demand.

    ``untyped`` says that every value is a string because the format has no other type (CSV, TSV).
    """

    where: str
    names: tuple[str, ...]
    column: Callable[[str], list[Any]]
    untyped: bool = False
    is_validation: bool = True
    """Of a split to evaluate on: whether it is one, or the training rows that it was held out of."""


def find_files(data: DataPaths, splits: Mapping[str, tuple[str, ...]]) -> dict[str, Path]:
    """The file of each split that has one.

    Args:
        data: a folder, or a file for each of the keys of ``splits``.
        splits: for each of train, validation and test the file names (without ending) to accept.

    Raises:
        TaskError: no such folder or file, an unknown split or ending, two files for one split.
    """
    if isinstance(data, Mapping):
        return _named_files(data, splits)
    folder = Path(data)
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise TaskOptionError(
            f"data folder {folder} {kind}; give a folder with one file a split "
            f"(train.csv, validation.csv, ...), or a mapping of split names to files"
        )
    found = {split: _file_of(folder, stems) for split, stems in splits.items()}
    return {split: path for split, path in found.items() if path is not None}


def read_table(path: Path) -> Table:
    """Read one file, in the format that its ending says.

    Raises:
        TaskError: unknown ending, not UTF-8, malformed (names the line), or doubled columns.
    """
    table = READERS[_known_ending(path)](path)
    doubled = sorted({name for name in table.names if table.names.count(name) > 1})
    if doubled:
        raise TaskError(f"{path} has more than one column named {listed(doubled)}; rename one")
    return table


def _named_files(data: Mapping[str, str | Path], splits: Mapping[str, tuple[str, ...]]) -> dict[str, Path]:
    for split, path in data.items():
        if split not in splits:
            hint = did_you_mean(split, splits)
            raise TaskOptionError(f"unknown split {split!r}.{hint} Known splits: {listed(splits)}")
        if not Path(path).is_file():
            raise TaskOptionError(f"the file of split {split!r} does not exist: {path}")
        _known_ending(Path(path))
    return {split: Path(path) for split, path in data.items()}


def _known_ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in READERS:
        raise TaskError(f"{path} has an unknown ending; give one of {listed(READERS)}")
    return ending


def _file_of(folder: Path, stems: tuple[str, ...]) -> Path | None:
    for stem in stems:
        paths = [folder / f"{stem}{ending}" for ending in READERS]
        present = [path for path in paths if path.is_file()]
        if len(present) > 1:
            names = listed(path.name for path in present)
            raise TaskError(f"{folder} has more than one file for split {stem!r}: {names}; keep one")
        if present:
            return present[0]
    return None


def _read_parquet(path: Path) -> Table:
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise TaskError(f"{path} is not a readable parquet file: {error}") from error
    names = tuple(file.schema_arrow.names)
    return Table(str(path), names, lambda name: _parquet_column(file, name))


def _parquet_column(file: Any, name: str) -> list[Any]:
    try:
        values: list[Any] = file.read(columns=[name]).column(0).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TaskError(f"column {name!r} of a parquet file cannot be read: {error}") from error
    return values


def _read_csv(path: Path, delimiter: str = ",") -> Table:
    csv.field_size_limit(LONGEST_FIELD)
    lines = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(lines, [])
        rows = [row for row in _equally_long(lines, header, path) if row]
    except csv.Error as error:
        raise TaskError(
            f"{path}, line {lines.line_num}: {error}; quote fields that hold quotes or newlines"
        ) from error
    positions = {name: position for position, name in enumerate(header)}
    return Table(
        str(path),
        tuple(header),
        lambda name: [row[positions[name]] for row in rows],
        untyped=True,
    )


def _read_tsv(path: Path) -> Table:
    return _read_csv(path, delimiter="\t")


def _equally_long(lines: Any, header: list[str], path: Path) -> Iterator[list[str]]:
    for row in lines:
        if row and len(row) != len(header):
            raise TaskError(
                f"{path}, line {lines.line_num}: {len(row)} fields, but the header has "
                f"{len(header)}; quote fields that hold the delimiter"
            )
        yield row


def _read_jsonl(path: Path) -> Table:
    records = [
        _parse_json(line, path, line_number)
        for line_number, line in enumerate(_read_text(path).split("\n"), start=1)
        if line.strip()
    ]
    return _table_of_records(records, path)


def _read_json(path: Path) -> Table:
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    return _table_of_records(_parse_json(text, path, first_line=1), path)


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise TaskError(f"{path}, from line {first_line}: {listed(doubled)} appears twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=checked)
    except RecursionError as error:
        raise TaskError(f"{path}, from line {first_line}: nested too deeply to be data") from error
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{path}, line {first_line + error.lineno - 1}, column {error.colno}: "
            f"not valid JSON ({error.msg})"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise TaskError(f"{path}, from line {first_line}: {error}") from error


def _table_of_records(records: list[Any], path: Path) -> Table:
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise TaskError(f"{path}, row {number}: expected a JSON object, found {kind}")
    names = tuple(dict.fromkeys(name for record in records for name in record))
    return Table(str(path), names, lambda name: [record.get(name) for record in records])


def _read_lines(path: Path) -> Table:
    """One text a line, in the column ``text``; blank lines are skipped."""
    lines = [line for line in text_lines(path) if line.strip()]
    return Table(str(path), ("text",), lambda _name: lines, untyped=True)


def _read_conll(path: Path) -> Table:
    """One word a line, its tag in the last field; a blank line ends a text: the columns tokens and tags."""
    texts: list[list[tuple[str, str]]] = [[]]
    for number, line in enumerate(text_lines(path), start=1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            texts.append([])
        elif fields[0] != "-DOCSTART-":
            if len(fields) < 2:
                raise TaskError(f"{path}, line {number}: {line!r:.60} has no tag behind its word")
            texts[-1].append((fields[0].strip(), fields[-1].strip()))
    rows = [text for text in texts if text]
    columns = {
        "tokens": [[word for word, _ in row] for row in rows],
        "tags": [[tag for _, tag in row] for row in rows],
    }
    return Table(str(path), tuple(columns), lambda name: columns[name])


def text_lines(path: Path) -> list[str]:
    """The lines of a text file as an editor numbers them: only a line feed ends one, or CR and line feed.

    Raises:
        TaskError: it cannot be read, or is not UTF-8.
    """
    lines = [line.removesuffix("\r") for line in _read_text(path).split("\n")]
    return lines if lines[-1] else lines[:-1]


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}") from error
    offset = len(UTF8_BOM) if content.startswith(UTF8_BOM) else 0
    try:
        return content[offset:].decode("utf-8")
    except UnicodeDecodeError as error:
        position = offset + error.start
        raise TaskError(
            f"{path} is not UTF-8: byte 0x{content[position]:02x} at byte offset {position}; "
            f"save the file as UTF-8"
        ) from error


READERS: dict[str, Callable[[Path], Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".txt": _read_lines,
    ".conll": _read_conll,
}
