"""`bench run`, many seeds: one file a seed, so that long grids survive interruption, and a summary of all."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightpeft.bench.earlier import other_settings
from lightpeft.bench.run_picture import save_run_picture
from lightpeft.bench.run_summary import summarise
from lightpeft.bench.whole_runs import RunBenchmark, run_seed
from lightpeft.errors import CheckpointError, OutputError
from lightpeft.files import read_json, save_json
from lightpeft.outputs import Output, check_file, check_room, locked
from lightpeft.report.fields import plain_json

logger = logging.getLogger(__name__)

SUMMARY, PICTURE = "run.json", "run.svg"
_PATIENCE = 60.0
"""Seconds to wait for another process that writes its own seed's result into the same folder."""


def run_benchmark(benchmark: RunBenchmark, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """Run the seeds that are not in `out` yet; write `seed-N.json` each, and `run.json` and `run.svg` of all.

    Several processes may work on different seeds in one folder.

    Returns:
        the summary of all seeds in `out`.

    Raises:
        OutputError: `out` has results of another setting, or something that would be lost.
        MethodError: a method failed. Seeds that were finished before stay.
    """
    setting = plain_json("the record of a benchmark", benchmark.record())
    check_outputs(out, setting, seeds)
    for seed in seeds:
        if _path(out, seed).exists():
            logger.info("seed %d is in %s already", seed, out)
            continue
        work = out / f"seed-{seed}"
        with locked(work):
            result = run_seed(benchmark, seed, work)
        with locked(out, _PATIENCE):
            save_json(_path(out, seed), result, Output.RESULT)
            write_summary(out, setting)
    with locked(out, _PATIENCE):
        return write_summary(out, setting)


def check_outputs(out: Path, setting: dict[str, Any], seeds: Sequence[int]) -> None:
    """Refuse a folder before anything runs in which something would be lost or mixed up.

    Raises:
        OutputError: what is in the way.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a folder.")
    check_room(out)
    check_file(out / SUMMARY, Output.RESULT)
    check_file(out / PICTURE, Output.PICTURE)
    read_seeds(out, setting)
    for seed in seeds:
        if not _path(out, seed).exists():
            check_file(_path(out, seed), Output.RESULT)


def write_summary(out: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Write the table's numbers and the picture of all seeds in `out`."""
    summary = summarise(read_seeds(out, setting))
    save_json(out / SUMMARY, summary, Output.RESULT)
    save_run_picture(out / PICTURE, summary)
    return summary


def read_seeds(out: Path, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """The results in `out`, by seed.

    Raises:
        OutputError: one is not of this setting, or no result at all.
    """
    return sorted((_read(path, setting) for path in out.glob("seed-*.json")), key=lambda one: one["seed"])


def _read(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    try:
        result = read_json(path)
    except CheckpointError as error:
        raise OutputError(f"{error} Move it away, or choose another folder.") from error
    found = result.get("setting")
    if not isinstance(found, dict) or path != _path(path.parent, result.get("seed", -1)):
        raise OutputError(
            f"{path} exists and is no result of bench run; move it away, or choose another folder."
        )
    odd = other_settings(found, setting)
    if odd is not None:
        raise OutputError(
            f"{path} was measured with another setting ({odd or 'more methods'}); "
            "choose another folder, or the same setting."
        )
    return result


def _path(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}.json"
