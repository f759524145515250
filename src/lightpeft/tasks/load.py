"""A task and its data set -> checked splits under one set of column names."""

import logging
from collections.abc import Mapping, Sequence
from random import Random

from datasets import Dataset, Features, Value

from lightpeft.tasks.columns import Columns, rewritten
from lightpeft.tasks.draw import permutation
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds import find_kind
from lightpeft.tasks.metrics import with_metrics
from lightpeft.tasks.registry import find_task
from lightpeft.tasks.sources import open_tables, open_validation
from lightpeft.tasks.spec import DataPaths, TaskData, TaskSpec, ValidationData

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.1


def load_task(
    task: str | TaskSpec,
    data: DataPaths | None = None,
    *,
    train_limit: int | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> TaskData:
    """Load the splits of a task and check them before anything is trained.

    Args:
        task: a name (``glue/sst2``, ``sst2``, ``demo/sentiment``) or a spec (``custom_task``).
        data: a folder with one file a split (train, validation, optionally test; .parquet, .csv,
            .tsv, .jsonl, .json or .txt), or a mapping of split names to files. None takes the task's own
            source: the hub or a generator.
        train_limit: keep a random subset of this many training examples.
        sizes: numbers of examples to generate for ``train`` and ``validation``; only for generated
            tasks.
        seed: of everything random here: generated text, the subset, the held-out rows.

    Raises:
        TaskError: the task, its files, columns, texts or labels cannot be used.
    """
    spec = find_task(task) if isinstance(task, str) else task
    if train_limit is not None and train_limit < 1:
        raise TaskOptionError(f"train_limit must be at least 1; found {train_limit}")
    tables = open_tables(spec, data, sizes, seed)
    spec, resolved = find_kind(spec.objective).resolve(spec, _checked(spec, tables))
    spec, columns = with_metrics(spec), dict(resolved)
    held_out_of = None
    if "validation" not in columns:
        held_out_of = _length(columns["train"])
        columns |= _held_out(columns["train"], spec, seed)
    columns["train"] = _limited(columns["train"], spec, train_limit, seed)
    splits = {split: _dataset(found, spec) for split, found in columns.items()}
    return TaskData(spec, splits["train"], splits["validation"], splits.get("test"), held_out_of)


def load_validation(
    task: str | TaskSpec,
    data: DataPaths | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    held_out_of: int | None = None,
    seed: int = 0,
) -> ValidationData:
    """Load what a trained model is evaluated on; no other split is read.

    Args:
        task: a name, or a spec that says its classes or that it is a regression.
        data: as for ``load_task``.
        sizes: as for ``load_task``, which made the rows that the model was trained on.
        held_out_of: rows of the training file, if the validation rows were held out of it in training.
        seed: of ``load_task`` in training.

    Raises:
        TaskError: the split is missing, or a text or label in it cannot be used (names the row).
    """
    spec = with_metrics(find_task(task) if isinstance(task, str) else task)
    kind = find_kind(spec.objective)
    table = open_validation(spec, data, sizes, seed, held_out=held_out_of is not None)
    columns = kind.known(spec, kind.columns(spec, rewritten(spec, table)))
    if held_out_of is not None and not table.is_validation:
        if _length(columns) != held_out_of:
            raise TaskError(
                f"task {spec.name!r}: the validation rows were held out of {held_out_of} training rows, but "
                f"{table.where} has {_length(columns)}, so they cannot be told; add a validation file"
            )
        columns = _held_out(columns, spec, seed)["validation"]
    return ValidationData(spec, _dataset(columns, spec))


def _checked(spec: TaskSpec, tables: Mapping[str, Table]) -> dict[str, Columns]:
    kind = find_kind(spec.objective)
    columns = {
        split: kind.columns(spec, rewritten(spec, table))
        for split, table in tables.items()
        if split != "test"
    }
    test = None
    if "test" in tables and _is_labelled(spec, tables["test"]):
        test = kind.test_columns(spec, rewritten(spec, tables["test"]))
    return columns if test is None else columns | {"test": test}


def _is_labelled(spec: TaskSpec, table: Table) -> bool:
    """Whether a test split has what labels are made of; where that is the label itself, its kind looks."""
    return spec.rewrite is None or set(spec.rewrite.columns) <= set(table.names)


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _held_out(train: Columns, spec: TaskSpec, seed: int) -> dict[str, Columns]:
    """The training rows split into ``train`` and ``validation``."""
    rows = _length(train)
    if rows < 2:
        raise TaskError(
            f"task {spec.name!r} has no validation split, and {rows} training row to hold out from"
        )
    held = max(1, round(HELD_OUT_SHARE * rows))
    order = permutation(Random(seed), rows)
    logger.warning(
        "task %r has no validation split: %d of %d training rows are held out for it (seed %d)",
        spec.name,
        held,
        rows,
        seed,
    )
    return {
        "train": _rows(train, sorted(order[held:])),
        "validation": _rows(train, sorted(order[:held])),
    }


def _limited(train: Columns, spec: TaskSpec, limit: int | None, seed: int) -> Columns:
    rows = _length(train)
    if limit is not None and limit > rows:
        logger.warning("train_limit %d has no effect: there are %d training rows", limit, rows)
    if limit is not None and limit < rows:
        train = _rows(train, sorted(permutation(Random(seed), rows)[:limit]))
    find_kind(spec.objective).check_training(spec, train)
    return train


def _rows(columns: Columns, rows: Sequence[int]) -> Columns:
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def _dataset(columns: Columns, spec: TaskSpec) -> Dataset:
    types = find_kind(spec.objective).types(spec)
    features = {name: types.get(name, Value("string")) for name in columns}
    return Dataset.from_dict(columns, features=Features(features))
