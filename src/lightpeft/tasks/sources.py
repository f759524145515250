"""Where the splits of a task come from: local files, the hub, or a generator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets

from lightpeft.errors import listed
from lightpeft.tasks.errors import TaskError, TaskOptionError
from lightpeft.tasks.files import READERS, Table, find_files, read_table
from lightpeft.tasks.spec import DataPaths, GeneratedSource, HubSource, TaskSpec


def open_tables(
    spec: TaskSpec, data: DataPaths | None, sizes: Mapping[str, int] | None, seed: int
) -> dict[str, Table]:
    """The unchecked splits of a task; ``train`` is always there, ``validation`` unless own files.

    Args:
        spec: the task.
        data: a folder or files; None takes ``spec.source``.
        sizes: examples to generate by split; only for generated tasks.
        seed: of generated text.

    Raises:
        TaskError: no source, unreadable files, an unreachable hub, or a missing split.
    """
    generated = data is None and isinstance(spec.source, GeneratedSource)
    if sizes is not None and not generated:
        raise TaskOptionError(
            f"sizes are for generated tasks without data; for {spec.name!r} use train_limit"
        )
    if data is not None:
        return _tables_of_files(spec, data)
    if isinstance(spec.source, GeneratedSource):
        return _generated_tables(spec, spec.source, sizes or {}, seed)
    if isinstance(spec.source, HubSource):
        return _hub_tables(spec, spec.source)
    raise TaskOptionError(
        f"task {spec.name!r} has no data of its own; give a folder with a train file as data"
    )


def open_validation(
    spec: TaskSpec, data: DataPaths | None, sizes: Mapping[str, int] | None, seed: int, *, held_out: bool
) -> Table:
    """The unchecked validation split alone; with ``held_out``, else the training split.

    Raises:
        TaskError: as ``open_tables``.
    """
    if data is None:
        return open_tables(spec, None, sizes, seed)["validation"]
    files = find_files(data, _accepted_names(spec))
    if "validation" not in files and held_out and "train" in files:
        return replace(read_table(files["train"]), is_validation=False)
    _require_splits(spec, files, f"data {str(data)!r}", ["validation"])
    return read_table(files["validation"])


def _tables_of_files(spec: TaskSpec, data: DataPaths) -> dict[str, Table]:
    files = find_files(data, _accepted_names(spec))
    required = ["train"] if spec.source is None else ["train", "validation"]
    _require_splits(spec, files, f"data {str(data)!r}", required)
    return {split: read_table(path) for split, path in files.items()}


def _generated_tables(
    spec: TaskSpec, source: GeneratedSource, sizes: Mapping[str, int], seed: int
) -> dict[str, Table]:
    unknown = sorted(set(sizes) - {"train", "validation"})
    if unknown:
        raise TaskOptionError(f"sizes has unknown splits {listed(unknown)}; known: train, validation")
    try:
        train = source.generate(sizes.get("train", source.train), seed, "train")
        validation = source.generate(sizes.get("validation", source.validation), seed, "validation")
    except ValueError as error:
        raise TaskError(f"task {spec.name!r}: {error}") from error
    return {
        split: Table(f"{spec.name} {split}", (*spec.text, spec.label), _column_of(examples))
        for split, examples in (("train", train), ("validation", validation))
    }


def _column_of(examples: Sequence[Mapping[str, Any]]) -> Callable[[str], list[Any]]:
    return lambda name: [example[name] for example in examples]


def _hub_tables(spec: TaskSpec, source: HubSource) -> dict[str, Table]:
    try:
        hub = datasets.load_dataset(source.path, source.config, revision=source.revision)
    except (OSError, ValueError) as error:
        raise TaskError(
            f"task {spec.name!r}: {source.path} ({source.config}) cannot be loaded from the "
            f"Hugging Face hub: {' '.join(str(error).split())}. Give a folder with train and validation "
            "files as data"
        ) from error
    present = {
        split: next(name for name in names if name in hub)
        for split, names in _accepted_names(spec).items()
        if any(name in hub for name in names)
    }
    _require_splits(spec, present, f"{source.path} ({source.config})", ["train", "validation"])
    return {
        split: Table(f"{spec.name} {name}", tuple(hub[name].column_names), _column_on_hub(hub[name]))
        for split, name in present.items()
    }


def _column_on_hub(split: datasets.Dataset) -> Callable[[str], list[Any]]:
    return lambda name: list(split[name][:])


def _accepted_names(spec: TaskSpec) -> dict[str, tuple[str, ...]]:
    return {
        "train": ("train",),
        "validation": spec.validation_splits,
        "test": ("test_matched", "test"),
    }


def _require_splits(spec: TaskSpec, found: Mapping[str, object], where: str, required: Sequence[str]) -> None:
    missing = [split for split in required if split not in found]
    if missing:
        names = [name for split in missing for name in _accepted_names(spec)[split]]
        raise TaskError(
            f"task {spec.name!r}: {where} has no {' and no '.join(missing)} split; found: "
            f"{listed(found)}. A folder needs one file named {listed(names)} with the ending "
            f"{', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}"
        )
