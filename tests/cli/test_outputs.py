"""Every writer, in every place that may be in its way: nothing is destroyed, and it is said before any work.

A new verb, function or program that writes gets a row in FILES, FOLDERS or RUNS.
"""

import contextlib
import errno
import importlib
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.conftest import QUICK
from tests.support.audit_cells import cell_of
from tests.support.audit_runs import save_tiny_task
from tests.support.models import assert_identical, load_base, with_lora
from tests.support.probing import random_scores

import lightpeft
from lightpeft.audit.grid.report import write_audit_report
from lightpeft.audit.module import save_module
from lightpeft.bench import result_file, save_result
from lightpeft.bench.run_picture import save_run_picture
from lightpeft.checkpoint import is_complete
from lightpeft.cli.audit import VERBS as AUDIT_VERBS
from lightpeft.cli.main import VERBS, main
from lightpeft.errors import OutputError
from lightpeft.files import save_json
from lightpeft.outputs import LOCK, MANIFEST, RECORD, Output, locked, written_folder
from lightpeft.report import Result, write_report

ROOT = Path(__file__).parents[2]
CELL = cell_of()
Write = Callable[[SimpleNamespace, Path], Any]


@dataclass(frozen=True)
class Row:
    """A writer, and what it writes under the name that it is given."""

    holds: Output
    write: Write
    quick: bool = True
    """Whether the tests let it finish; the others are only refused."""
    name: str = "target"


def verb(*words: str, out: str = "--out") -> Write:
    """A verb; names in braces are of the room."""

    def write(room: SimpleNamespace, target: Path) -> None:
        told = io.StringIO()
        filled = [word.format(**vars(room)) for word in words]
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            status = main([*filled, out, str(target)])
        if status:
            assert status == 1 or "scan" in words
            assert "--debug" not in told.getvalue()
            raise OutputError(told.getvalue())

    return write


def program(module: str, *words: str, out: str = "--out") -> Write:
    """One of the programs in benchmarks/."""

    def write(room: SimpleNamespace, target: Path) -> None:
        told = io.StringIO()
        filled = [word.format(**vars(room)) for word in words]
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
            patch.setattr(sys, "argv", [module, *filled, *([out] if out else []), str(target)])
            try:
                importlib.import_module(f"benchmarks.{module}").main()
            except SystemExit as stopped:
                raise OutputError(told.getvalue()) from stopped

    return write


RUN_SUMMARY = {"setting": {"metric": "accuracy", "model": "m", "task": "t"}, "methods": {}}
FILES: dict[str, Row] = {
    "Scores.save": Row(Output.SCORES, lambda room, target: room.scores_object.save(target)),
    "Result.save": Row(Output.RESULT, lambda room, target: room.result.save(target)),
    "save_result": Row(Output.RESULT, lambda room, target: save_result(target, {"a": 1})),
    "Cell.save": Row(Output.CELL, lambda room, target: CELL.save(target.parent), name=CELL.key.file_name),
    "save_run_picture": Row(
        Output.PICTURE, lambda room, target: save_run_picture(target, RUN_SUMMARY), quick=False
    ),
    "write_report": Row(Output.PAGE, lambda room, target: write_report(target, room.result), quick=False),
    "write_audit_report": Row(
        Output.PAGE, lambda room, target: write_audit_report(target, [CELL]), quick=False
    ),
    "lightpeft estimate": Row(
        Output.SCORES, verb("estimate", "--task", "demo/sentiment", "--model", "{base}"), quick=False
    ),
    "lightpeft plan": Row(Output.PLAN, verb("plan", "--scores", "{scores}", "--model", "{base}")),
    "lightpeft predict": Row(Output.PREDICTIONS, verb("predict", "{run}", "{texts}")),
    "lightpeft report": Row(Output.PAGE, verb("report", "{run}"), quick=False),
    "lightpeft bench speed": Row(Output.RESULT, verb("bench", "speed", "--model", "{base}"), quick=False),
    "lightpeft audit scan --sarif": Row(
        Output.FINDINGS, verb("audit", "scan", "{module}", "--base", "{base}", out="--sarif"), quick=False
    ),
    "lightpeft audit report": Row(Output.PAGE, verb("audit", "report", "{cells}"), quick=False),
    "digits.py": Row(Output.RESULT, program("digits"), quick=False),
    "kill.py": Row(Output.RESULT, program("kill"), quick=False),
    "deployed.py": Row(Output.RESULT, program("deployed", "--run", "no"), quick=False),
    "graph_zoo.py": Row(Output.RESULT, program("graph_zoo"), quick=False),
    "plug_and_play.py": Row(Output.RESULT, program("plug_and_play"), quick=False),
    "whole_blocks.py": Row(Output.RESULT, program("whole_blocks"), quick=False),
    "trigger_visibility.py": Row(Output.RESULT, program("trigger_visibility", "--data", "no"), quick=False),
    "audit_tables.py": Row(Output.RESULT, program("audit_tables", "{cells}", out="--pack"), quick=False),
}
FOLDERS: dict[str, Row] = {
    "save": Row(Output.LIGHT, lambda room, target: lightpeft.save(room.light_model, target)),
    "export_merged": Row(Output.MERGED, lambda room, target: lightpeft.export_merged(room.light, target)),
    "export_full_adapter": Row(
        Output.FULL_ADAPTER, lambda room, target: lightpeft.export_full_adapter(room.light, target)
    ),
    "export_transformers": Row(
        Output.STOCK, lambda room, target: lightpeft.export_transformers(room.even, target)
    ),
    "save_module": Row(Output.MODULE, lambda room, target: save_module(room.light_model, target, None)),
    "lightpeft export --to merged": Row(
        Output.MERGED, verb("export", "{run}", "--to", "merged"), quick=False
    ),
    "lightpeft export --to full-adapter": Row(
        Output.FULL_ADAPTER, verb("export", "{run}", "--to", "full-adapter"), quick=False
    ),
    "export_onnx": Row(
        Output.ONNX, lambda room, target: lightpeft.export_onnx(room.light, target), quick=False
    ),
    "export_torch": Row(
        Output.PROGRAM, lambda room, target: lightpeft.export_torch(room.light, target), quick=False
    ),
    "export_gguf": Row(
        Output.GGUF, lambda room, target: lightpeft.export_gguf(room.light, target), quick=False
    ),
    "lightpeft export --to transformers": Row(
        Output.STOCK, verb("export", "{run}", "--to", "transformers"), quick=False
    ),
}
RUNS: dict[str, tuple[Write, tuple[str, ...]]] = {
    "lightpeft train": (
        verb("train", "--model", "{base}", *QUICK),
        ("light", "scores.safetensors", "result.json", "report.html"),
    ),
    "lightpeft train --compare": (verb("train", "--model", "{base}", "--compare", *QUICK), ("plain",)),
    "lightpeft train --training.save_steps": (
        verb("train", "--model", "{base}", "--training.save_steps", "2", *QUICK),
        ("checkpoints/light-0/checkpoint-2",),
    ),
    "lightpeft demo": (verb("demo"), ("light", "plain", "result.json")),
    "lightpeft bench run": (
        verb("bench", "run", "--model", "{base}"),
        ("run.json", "run.svg", "seed-0.json"),
    ),
    "lightpeft bench quality": (
        verb("bench", "quality", "{quality_grid}", "--report"),
        ("report.md", "frontier.svg"),
    ),
    "lightpeft audit run": (verb("audit", "run", "{grid}"), ("report.html",)),
    "lightpeft audit demo": (verb("audit", "demo"), ("report.html",)),
    "lightpeft audit defend": (
        verb(
            *("audit", "defend", "{module}", "--method", "onion", "--task", "own", "--data", "{films}"),
            *("--text", "text", "--texts", "{texts}"),
        ),
        ("module", "result.json", "predictions.jsonl"),
    ),
}
"""Verbs that write several things into a folder, and the names of those."""


GRID = """
grid:
  model: {base}
  tasks: {{a: {{task: demo/sentiment}}, b: {{task: demo/sentiment}}}}
  pairs: [[a, b]]
  forms: [parallel]
  attacks: {{vanilla: {{policy: {{name: vanilla}}, trigger: {{target: 1, pieces: [cf]}}}}}}
  defences: {{none: {{method: none}}}}
  seeds: [0]
"""


QUALITY_GRID = """
grid:
  models: {m: {model: m}}
  tasks: {t: {task: demo/sentiment}}
  methods: {plain: {}}
"""


@pytest.fixture(scope="module")
def room(finished_run: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Inputs for all writers."""
    folder = tmp_path_factory.mktemp("room")
    run = Path(shutil.copytree(finished_run, folder / "run"))
    (folder / "texts.txt").write_text("the film was fine\n")
    grid = folder / "grid.yaml"
    grid.write_text(GRID.format(base=tiny_model))
    quality_grid = folder / "quality.yaml"
    quality_grid.write_text(QUALITY_GRID)
    return SimpleNamespace(
        quality_grid=quality_grid,
        run=run,
        light=run / "light",
        even=save_even(tiny_model, folder / "even"),
        light_model=lightpeft.load(run / "light"),
        scores=run / "scores.safetensors",
        scores_object=lightpeft.Scores.load(run / "scores.safetensors"),
        result=Result.load(run / "result.json"),
        base=tiny_model,
        texts=folder / "texts.txt",
        module=run / "plain",
        cells=CELL.save(folder / "cells") or folder / "cells",
        films=save_tiny_task(folder / "films", "films"),
        grid=grid,
    )


def save_even(base: Path, folder: Path) -> Path:
    """A light checkpoint that an ordinary one can be written of."""
    model = with_lora(load_base(base))
    plan = lightpeft.make_plan(
        random_scores(model), lightpeft.find_anatomy(model), lightpeft.Budget(uniform=True)
    )
    lightpeft.cut(model, plan)
    return lightpeft.save(model, folder)


def contents(folder: Path) -> dict[str, bytes | None]:
    """All there is, but for what only remembers who wrote what."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name not in (RECORD, LOCK)
    }


@contextlib.contextmanager
def refused(folder: Path, *said: str) -> Iterator[None]:
    """It must be refused, name what is in the way, and change nothing in `folder`."""
    before = contents(folder)
    with pytest.raises(OutputError) as caught:
        yield
    assert [part for part in said if part not in str(caught.value)] == [], caught.value
    assert "Traceback" not in str(caught.value)
    assert contents(folder) == before


def quick(rows: dict[str, Row]) -> list[str]:
    return [name for name, row in rows.items() if row.quick]


@pytest.mark.parametrize("name", FILES)
def test_a_file_takes_the_place_of_nothing_that_is_not_its_own(
    name: str, room: SimpleNamespace, tmp_path: Path
) -> None:
    row = FILES[name]
    parts = ("folder", "file", "other", "below")
    folder, foreign, other, below = (tmp_path / part / row.name for part in parts)
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with refused(tmp_path, str(folder), "is a folder"):
        row.write(room, folder)
    foreign.parent.mkdir()
    foreign.write_text("years of work")
    with refused(tmp_path, str(foreign), "exists"):
        row.write(room, foreign)
    save_json(other, {}, Output.DATA)
    with refused(tmp_path, str(other)):
        row.write(room, other)
    below.parent.write_text("a file")
    with refused(tmp_path, str(below.parent), "is a file"):
        row.write(room, below)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_takes_the_place_of_nothing_that_is_not_its_own(
    name: str, room: SimpleNamespace, tmp_path: Path
) -> None:
    row = FOLDERS[name]
    file, foreign, other, below = (tmp_path / part for part in ("file", "foreign", "other", "file/below"))
    file.write_text("years of work")
    for place in (file, below):
        with refused(tmp_path, str(file), "is a file"):
            row.write(room, place)
    (foreign / "checkpoint-4").mkdir(parents=True)
    (foreign / "checkpoint-4" / "optimizer.pt").write_text("years of work")
    (foreign / "pruning.json").write_text("{}")
    with refused(tmp_path, "checkpoint-4/optimizer.pt", "did not write"):
        row.write(room, foreign)
    with written_folder(other, Output.PLAIN) as beside:
        beside.mkdir()
        (beside / "adapter_config.json").write_text("{}")
    with refused(tmp_path, str(other), "adapter_config.json"):
        row.write(room, other)
    if row.holds is not Output.LIGHT:
        with refused(room.light, str(room.light)):
            row.write(room, room.light)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_takes_the_place_of_nothing_that_is_not_its_own(
    name: str, room: SimpleNamespace, tmp_path: Path
) -> None:
    write, parts = RUNS[name]
    (tmp_path / "file").write_text("years of work")
    with refused(tmp_path, "is a file"):
        write(room, tmp_path / "file")
    for number, part in enumerate(parts):
        inside = tmp_path / str(number) / part
        if "." in part:
            inside.parent.mkdir(parents=True)
            inside.write_text("years of work")
        else:
            inside.mkdir(parents=True)
            (inside / "thesis.txt").write_text("years of work")
        with refused(tmp_path, Path(part).name):
            write(room, tmp_path / str(number))


@pytest.mark.parametrize("name", [*FILES, *FOLDERS, *RUNS])
def test_a_place_that_cannot_be_written_to_is_refused_before_work(
    name: str, room: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("lightpeft.outputs.owned.tempfile.NamedTemporaryFile", full)
    row = FILES.get(name) or FOLDERS.get(name)
    with refused(tmp_path, "nothing can be written to", "Read-only file system"):
        if row is None:
            RUNS[name][0](room, tmp_path / "run")
        else:
            row.write(room, tmp_path / row.name)


@pytest.mark.parametrize("name", [*quick(FILES), *quick(FOLDERS)])
def test_an_older_own_output_is_replaced_unless_it_was_changed(
    name: str, room: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = (FILES | FOLDERS)[name]
    target = tmp_path / row.name
    row.write(room, target)
    row.write(room, target)
    written = contents(tmp_path)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightpeft.outputs.beside._take_place", full)
    with refused(tmp_path, "No space left on device"):
        row.write(room, target)
    monkeypatch.undo()
    listed = target.rglob("*.json") if target.is_dir() else [target]
    changed = next(path for path in listed if path.name != MANIFEST)
    changed.write_bytes(changed.read_bytes() + b"\n")
    with refused(tmp_path, changed.name):
        row.write(room, target)
    changed.write_bytes(written[str(changed.relative_to(tmp_path))] or b"")
    row.write(room, target)
    if target.is_dir():
        (target / "note.txt").write_text("mine")
        with refused(tmp_path, "note.txt"):
            row.write(room, target)


def test_a_second_run_in_the_same_folder_is_refused(room: SimpleNamespace, tmp_path: Path) -> None:
    """And not for longer than the first one lives, however it ends."""
    code = (
        "import sys, time, pathlib; from lightpeft.outputs import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    for name in ("lightpeft train", "lightpeft audit demo"):
        with refused(tmp_path, f"process {holder.pid}", "is writing into"):
            RUNS[name][0](room, tmp_path / "out")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK).exists()
    assert not (tmp_path / "out" / LOCK).exists()


def test_resume_is_of_the_same_run_only(room: SimpleNamespace, tmp_path: Path) -> None:
    words = ("train", "--model", "{base}", *QUICK, "--training.save_steps", "5")
    verb(*words)(room, tmp_path / "out")
    before = lightpeft.load(tmp_path / "out" / "light").state_dict()
    for option, said in (
        (("--training.learning_rate", "0.01", "--resume"), "learning_rate 0.001 instead of 0.01"),
        (
            ("--training.seed", "3", "--seeds", "[0]", "--training.max_steps", "12", "--resume"),
            "max_steps 10",
        ),
        (("--train-limit", "63", "--resume"), "data "),
        (("--training.learning_rate", "0.01"), "checkpoints of an earlier run (checkpoint-5, checkpoint-10)"),
    ):
        with refused(tmp_path, said):
            verb(*words, *option)(room, tmp_path / "out")
    verb(*words, "--resume")(room, tmp_path / "out")
    assert_identical(lightpeft.load(tmp_path / "out" / "light").state_dict(), before)


@contextlib.contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with tempfile.TemporaryDirectory() as place:
        words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", place]
        if subprocess.run(words, check=False).returncode:
            pytest.skip("no tmpfs can be mounted here")
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def test_a_run_on_a_disk_that_fills_up_ends_in_one_line(room: SimpleNamespace) -> None:
    with small_disk(500) as place:
        write = verb("train", "--model", "{base}", *QUICK, "--training.save_steps", "1")
        with pytest.raises(OutputError) as caught:
            write(room, place / "out")
        (line,) = [one for one in str(caught.value).splitlines() if one.startswith("lightpeft train: ")]
        assert "could not be written" in line
        left = [path for path in place.rglob("checkpoint-*") if path.is_dir()]
        assert left
        assert all(is_complete(path) for path in left)
        assert not (place / "out" / "light").exists()


def test_a_disk_that_is_full_in_the_middle_loses_nothing(room: SimpleNamespace) -> None:
    with small_disk(1200) as place:
        light = lightpeft.save(room.light_model, place / "light")
        room.scores_object.save(place / "scores.safetensors")
        (place / "filling").write_bytes(bytes(shutil.disk_usage(place).free - 100_000))
        with refused(place, "No space left"):
            lightpeft.save(room.light_model, light)
        with refused(place, "No space left"):
            lightpeft.export_merged(light, place / "merged")
        lightpeft.load(light)


def test_every_kind_of_output_has_a_row() -> None:
    rows = {row.holds for row in (FILES | FOLDERS).values()}
    assert rows | {Output.PLAIN, Output.DATA, Output.CARD, Output.COPY} == set(Output)


def test_every_public_writer_has_a_row() -> None:
    names = {name.split(" ")[0] for name in FOLDERS} | {"save_with_state"}  # which calls save
    assert {name for name in lightpeft.__all__ if name.startswith(("save", "export"))} <= names
    for kind in (lightpeft.Scores, lightpeft.Plan, Result):
        assert not hasattr(kind, "save") or f"{kind.__name__}.save" in FILES


def test_every_verb_that_writes_has_a_row() -> None:
    rows = " ".join([*FILES, *FOLDERS, *RUNS]) + " "
    modules = {f"lightpeft {name}": f"lightpeft.cli.{name}" for name in VERBS if name != "audit"}
    for name in AUDIT_VERBS:
        modules[f"lightpeft audit {name}"] = f"lightpeft.cli.audit.{'grid' if name == 'run' else name}"
    for name, module in modules.items():
        source = inspect.getsource(importlib.import_module(module))
        if re.search(r"^    (out|sarif): Path", source, re.MULTILINE):
            assert f"{name} " in rows, name


def test_every_program_that_writes_checks_its_place_first() -> None:
    for path in (ROOT / "benchmarks").glob("*.py"):
        source = path.read_text()
        if re.search(r'"(--)?(out|pack)"', source):
            checks = ("result_file", "check_file", "check_room")
            assert any(check in source for check in checks), f"{path.name}: check --out at once"


def test_nothing_is_written_past_the_one_way() -> None:
    """Text and bytes are written to a path beside the target, never to the target."""
    past = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("src", "benchmarks", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\.write_(text|bytes)\(", line) and "beside.write_" not in line
    ]
    allowed = ("benchmarks/fuzz.py", "src/lightpeft/checkpoint/save.py: (folder / CARD)")
    assert [line for line in past if not line.startswith(allowed)] == []  # mutations; a part of a set


def test_a_benchmarks_place_is_checked_as_an_option(tmp_path: Path) -> None:
    save_result(tmp_path / "own.json", {"a": 1})
    assert result_file(str(tmp_path / "own.json")) == tmp_path / "own.json"
