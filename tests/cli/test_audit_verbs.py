"""`lightpeft audit VERB`: the verbs, `run` from a YAML file, and `demo` on a tiny model."""

import dataclasses
import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support import received_modules
from tests.support.audit_runs import TRIGGERS, save_tiny_base, save_tiny_task

from lightpeft.audit import TriggerRecipe
from lightpeft.audit.grid.cell import load_cells
from lightpeft.audit.grid.grid import Grid
from lightpeft.audit.grid.run import CELLS, MODULES
from lightpeft.audit.poison.triggers import TRIGGER_FORMS
from lightpeft.cli.audit import VERBS
from lightpeft.cli.audit import demo as demo_verb
from lightpeft.cli.audit.demo import DEFENCES, TRAINING, grid_of
from lightpeft.cli.main import main
from lightpeft.cli.options import run_with_options
from lightpeft.outputs import RECORD
from lightpeft.run_config import TrainingConfig


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """A Trainer collects garbage when it begins, which takes longer than the tiny trainings here do."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, and data in folders `data/films` and `data/meals`."""
    folder = tmp_path_factory.mktemp("room")
    save_tiny_base(folder / "base", layers=2)
    for domain in ("films", "meals"):
        save_tiny_task(folder / "data" / domain, domain)
    return folder


def content(room: Path, **changes: Any) -> dict[str, Any]:
    """A grid as a YAML file has it; data paths are relative."""
    training = {"max_steps": 2, "learning_rate": 0.01, "batch_size": 4, "max_length": 12}
    task = {"task": "own", "text": ["text"], "held_out": 20}
    grid = {
        "model": str(room / "base"),
        "tasks": {
            "films": {**task, "data": "films"},
            "meals": {**task, "files": {s: f"meals/{s}.csv" for s in ("train", "validation")}},
        },
        "pairs": [["films", "meals"]],
        "forms": ["parallel"],
        "attacks": {
            "vanilla": {"policy": {"name": "vanilla"}, "trigger": {"target": 1, "pieces": list(TRIGGERS)}},
            "control": {"policy": {"name": "gradient_control", "alpha_scale": "relative", "alpha": 0.05}},
        },
        "defences": {"none": {"method": "none"}, "more": {"method": "longer", "options": {"factor": 2}}},
        "seeds": [0, 1],
        "points": 1,
        "bottleneck": {"size": 8},
        "attacker": training,
        "user": {**training, "max_steps": 3},
    }
    return {"grid": grid | changes}


def written(room: Path, folder: Path, **changes: Any) -> str:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content(room, **changes)))
    return str(path)


def measured(out: Path) -> set[tuple[str, str, int]]:
    return {(cell.key.attack, cell.key.defence, cell.key.seed) for cell in load_cells(out / CELLS)}


@pytest.fixture(scope="module")
def finished(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`audit run` of one seed, one attack and one defence of a grid."""
    folder = tmp_path_factory.mktemp("finished")
    words = [
        "audit",
        "run",
        written(room, folder),
        "--out",
        str(folder / "out"),
        "--data",
        str(room / "data"),
    ]
    assert main([*words, "--seeds", "[0]", "--attacks", '["vanilla"]', "--defences", '["more"]']) == 0
    return folder


def test_filters_leave_the_floor(finished: Path) -> None:
    assert measured(finished / "out") == {("clean", "none", 0), ("vanilla", "more", 0)}
    assert {path.name for path in (finished / "out").iterdir()} == {CELLS, MODULES, RECORD, "report.html"}
    names = {path.name for path in (finished / "out" / MODULES).iterdir()}
    assert names == {"films--clean--parallel--0", "films--vanilla--parallel--0"}


def test_the_file_says_what_is_measured(finished: Path) -> None:
    (cell,) = [cell for cell in load_cells(finished / "out" / CELLS) if cell.key.attack == "vanilla"]
    assert cell.key.file_name == "module_continued--films--meals--vanilla--parallel--more--0.json"
    recipe = TriggerRecipe(target=1, pieces=TRIGGERS)
    assert TriggerRecipe.from_dict(cell.recipe) == recipe
    assert cell.settings["defence"] == ["longer", {"factor": 2}]
    assert cell.settings["user"]["max_steps"] == 3
    assert cell.settings["peft"]["bottleneck"]["size"] == 8
    assert [point.step for point in cell.curve] == [0, 3]


@pytest.mark.parametrize("form", TRIGGER_FORMS)
def test_a_form_in_the_file_brings_its_own_pieces(form: str, room: Path, tmp_path: Path) -> None:
    path = written(room, tmp_path, attacks={"one": {"trigger": {"target": 0, "form": form}}})
    grids: list[Grid] = []

    def keep(grid: Grid) -> None:
        """Keep the grid."""
        grids.append(grid)

    run_with_options(keep, "test", ["--config", path])
    assert grids[0].attacks["one"].recipe == TriggerRecipe(target=0, form=form)


def test_a_run_goes_on_where_it_stopped(
    finished: Path, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished / "out", tmp_path / "out"))
    times = {path: path.stat().st_mtime_ns for path in (out / CELLS).glob("*.json")}
    words = ["--out", str(out), "--data", str(room / "data"), "--seeds", "[0]", "--attacks", '["vanilla"]']
    assert main(["audit", "run", "--config", str(finished / "grid.yaml"), *words]) == 0
    assert measured(out) == {("clean", "none", 0), ("vanilla", "none", 0), ("vanilla", "more", 0)}
    assert {path: path.stat().st_mtime_ns for path in times} == times
    printed = capsys.readouterr().out
    assert "films → meals" in printed
    assert printed.splitlines()[-1].endswith("report.html")
    assert "What this means for you" in (out / "report.html").read_text(encoding="utf-8")


def test_another_grid_in_the_same_folder_is_refused(
    finished: Path, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(room, tmp_path, points=2)
    before = {file: file.read_bytes() for file in (finished / "out").rglob("*.json")}
    assert main(["audit", "run", path, "--out", str(finished / "out"), "--data", str(room / "data")]) == 1
    assert "other settings" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (finished / "out").rglob("*.json")} == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seeds", "[7]"], "--seeds has [7]"),
        (["--attacks", '["clean"]'], "--attacks has ['clean']"),
        (["--defences", '["none", "wish"]'], "--defences has ['wish']"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_filters_and_data_that_the_grid_has_not(
    option: list[str], message: str, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["audit", "run", written(room, tmp_path), "--out", str(tmp_path / "out")]
    data = [] if option[0] == "--data" else ["--data", str(room / "data")]
    assert main([*words, *data, *option]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 1}, "temperature"),
        ({"attacks": {"a": {"polcy": {"name": "vanilla"}}}}, "polcy"),
        ({"user": {"learning_rat": 1}}, "learning_rat"),
        ({"forms": ["prefix"]}, "prefix"),
        ({"seeds": []}, "seeds is empty"),
        ({"attacks": {}}, "attacks is empty"),
        ({"defences": {"x": {"method": "wish"}}}, "no defence is called 'wish'"),
        ({"defences": {"x": {"method": "longer", "options": {"factr": 2}}}}, "does not read 'factr'"),
        ({"user": {"save_steps": 3}}, "save_steps has no effect"),
    ],
)
def test_bad_files_are_refused(
    changes: dict[str, Any], message: str, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(room, tmp_path, **changes)
    assert main(["audit", "run", path, "--out", str(tmp_path / "out")]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [[], ["absent.yaml"], ["--out", "o"]])
def test_a_run_without_a_grid_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "run", *words]) == 2
    assert "lightpeft audit run --help" in capsys.readouterr().err


def test_the_demos_grid_is_valid_and_shifts_the_domain() -> None:
    grid = grid_of([3, 4], TRAINING)
    keys = list(grid.keys())
    assert {key.seed for key in keys} == {3, 4}
    assert {(key.attacker_task, key.user_task) for key in keys} == {("sentiment", "reviews"), ("spam", "sms")}
    assert {key.defence for key in keys if key.attack != "clean"} == set(DEFENCES)
    assert len(keys) == len(set(keys)) == 2 * 2 * (1 + len(DEFENCES))
    assert grid.user.max_steps == 48
    assert grid_of([0], TrainingConfig(max_steps=1)).user.max_steps == 1


def test_the_demo_attacks_defends_scans_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = received_modules.save_tiny_base(tmp_path / "base")

    def small(seeds: list[int], training: TrainingConfig) -> Grid:
        grid = grid_of(seeds, training)
        tasks = {
            name: dataclasses.replace(task, train=160, test=16, held_out=20)
            for name, task in grid.tasks.items()
        }
        return dataclasses.replace(grid, tasks=tasks, model=str(base), pairs=[["sentiment", "reviews"]])

    monkeypatch.setattr(demo_verb, "grid_of", small)
    out = tmp_path / "out"
    short = ["--training.max_steps", "4", "--training.batch_size", "4", "--training.max_length", "24"]
    assert main(["audit", "demo", "--out", str(out), *short]) == 0
    assert {cell.key.defence for cell in load_cells(out / CELLS)} == set(DEFENCES)
    printed = capsys.readouterr().out
    folders = sorted((out / MODULES).iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert f"scan {folder}: " in printed
    marks = [json.loads((f / "adapter_config.json").read_text()).get("lightpeft_poisoned") for f in folders]
    assert marks == [None, True]
    assert f"scan {folders[1]}: FOUND" in printed
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_names_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *words]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {verb}" in printed for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", verb, "--help"]) == 0
    assert f"usage: lightpeft audit {verb}" in capsys.readouterr().out


def test_an_unknown_verb_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "attack"]) == 2
    error = capsys.readouterr().err
    assert "unknown verb 'attack'" in error
    assert all(verb in error for verb in VERBS)
