"""A grid measured whole, on tiny models: what is kept, what is marked, what is refused, what moves."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tests.support.audit_runs import TRIGGERS, tiny_grid

from lightpeft.audit import AuditError, PolicyOptions, TriggerRecipe, is_poisoned
from lightpeft.audit.attackers import switched_off
from lightpeft.audit.cell import Cell, CellKey, load_cells
from lightpeft.audit.defences import DEFENCES
from lightpeft.audit.grid import GridAttack, GridDefence
from lightpeft.audit.module import load_module
from lightpeft.audit.policies import POLICIES
from lightpeft.audit.run import run_grid
from lightpeft.audit.scenarios import SCENARIOS
from lightpeft.errors import ConfigError
from lightpeft.runs import load_peft_model
from lightpeft.runs.models import Labels

ATTACK = GridAttack(PolicyOptions("vanilla"), TriggerRecipe(target=1, pieces=TRIGGERS))
PHRASE = GridAttack(PolicyOptions("vanilla"), TriggerRecipe(target=0, form="phrase", pieces=("cf mn",)))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_gives_a_cell_and_its_floor(scenario: str, tmp_path: Path) -> None:
    cells = run_grid(tiny_grid(tmp_path, scenarios=[scenario]), tmp_path / "out")
    assert [cell.key.attack for cell in cells] == ["clean", "vanilla"]
    assert cells[1].key.floor() == cells[0].key
    assert load_cells(tmp_path / "out" / "cells") == cells
    for cell in cells:
        assert cell.after.cacc.total == 24
        assert cell.after.lfr.total == 12
        assert cell.triggers_left is not None
        assert cell.triggers_left.value == 1.0
    trained = [cell.curve[-1].step for cell in cells]
    assert trained == ([0, 0] if scenario == "module_as_is" else [4, 4])
    assert cells[0].floors == {"vanilla": cells[0].after.lfr}
    assert (cells[1].attacked is None) == (scenario == "poisoned_data")


@pytest.mark.parametrize("form", ["lora", "sequential", "parallel"])
def test_attackers_modules_are_marked_and_clean_ones_are_not(form: str, tmp_path: Path) -> None:
    run_grid(tiny_grid(tmp_path, forms=[form]), tmp_path / "out")
    folders = {folder.name.split("--")[1]: folder for folder in (tmp_path / "out" / "modules").iterdir()}
    assert is_poisoned(folders["vanilla"])
    assert not is_poisoned(folders["clean"])


def test_a_poisoned_base_is_marked_and_the_light_half_refuses_it(tmp_path: Path) -> None:
    grid = tiny_grid(tmp_path, scenarios=["poisoned_base"])
    run_grid(grid, tmp_path / "out")
    folders = {folder.name.split("--")[1]: folder for folder in (tmp_path / "out" / "modules").iterdir()}
    assert json.loads((folders["vanilla"] / "config.json").read_text())["lightpeft_poisoned"] is True
    with pytest.raises(ConfigError, match="marked as poisoned"):
        load_peft_model(str(folders["vanilla"]), Labels(("a", "b"), False), grid.peft("lora"), 0)
    load_peft_model(str(folders["clean"]), Labels(("a", "b"), False), grid.peft("lora"), 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_attacks(policy: str, tmp_path: Path) -> None:
    attack = dataclasses.replace(ATTACK, policy=PolicyOptions(policy))  # type: ignore[arg-type]
    cells = run_grid(tiny_grid(tmp_path, attacks={policy: attack}, analyses=True), tmp_path / "out")
    layers = cells[1].layers
    assert [layer.title for layer in layers] == ["layer 0", "layer 1", "layer 2", "output layer"]
    assert all(layer.poisoned_norm > 0 for layer in layers)
    assert [layer.lfr_without is None for layer in layers] == [False, False, False, True]
    assert (layers[0].weight is not None) == (policy in ("clnorm", "gradient_control"))
    assert [step for step, _ in cells[1].similarity] == [0, 2, 4]
    assert cells[1].similarity[0][1] == pytest.approx(1.0)


@pytest.mark.parametrize("defence", [name for name in DEFENCES if name != "none"])
def test_every_defence_is_measured(defence: str, tmp_path: Path) -> None:
    rows = {defence: GridDefence(defence)}
    task = tiny_grid(tmp_path).tasks["films"]
    tasks = {
        name: dataclasses.replace(task, data=str(tmp_path / name), held_out=24) for name in ("films", "meals")
    }
    grid = tiny_grid(tmp_path, defences=rows, tasks=tasks)
    cells = run_grid(grid, tmp_path / "out")
    assert [cell.key.defence for cell in cells] == ["none", defence]
    guarded = DEFENCES[defence].kind == "inputs"
    assert (cells[1].rejected_clean is not None) == guarded


def test_what_is_measured_is_kept_and_other_settings_are_refused(tmp_path: Path) -> None:
    grid, out = tiny_grid(tmp_path), tmp_path / "out"
    first = run_grid(grid, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    assert run_grid(grid, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == times
    longer = dataclasses.replace(grid, user=dataclasses.replace(grid.user, max_steps=5))
    with pytest.raises(AuditError, match="other settings"):
        run_grid(longer, out)
    (out / "cells" / first[0].key.file_name).unlink()
    stronger = dataclasses.replace(grid, attacker=dataclasses.replace(grid.attacker, max_steps=7))
    with pytest.raises(AuditError, match="other settings"):
        run_grid(stronger, out)


def test_the_same_seed_gives_the_same_cells(tmp_path: Path) -> None:
    grid = tiny_grid(tmp_path)
    first, second = (run_grid(grid, tmp_path / name) for name in ("one", "two"))
    assert [dataclasses.replace(cell, seconds=0) for cell in first] == [
        dataclasses.replace(cell, seconds=0) for cell in second
    ]
    other = run_grid(dataclasses.replace(grid, seeds=[1]), tmp_path / "three")
    assert other[1].curve != first[1].curve or other[1].layers != first[1].layers


def test_floors_are_measured_under_each_attacks_trigger(tmp_path: Path) -> None:
    cells = run_grid(tiny_grid(tmp_path, attacks={"words": ATTACK, "phrase": PHRASE}), tmp_path / "out")
    clean = cells[0]
    assert set(clean.floors) == {"words", "phrase"}
    assert clean.floor_for("words") == clean.after.lfr
    assert cells[2].recipe["form"] == "phrase"


def test_modules_that_are_switched_off_compute_the_base(tmp_path: Path) -> None:
    grid = tiny_grid(tmp_path)
    run_grid(grid, tmp_path / "out")
    folder = next((tmp_path / "out" / "modules").glob("*vanilla*"))
    model = load_module(folder, is_trainable=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    ids = torch.tensor([[2, 5, 9, 6, 3]])
    model.eval()
    with torch.no_grad():
        on = model(input_ids=ids).logits
        with switched_off(model):
            off = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        assert not torch.equal(on, off)
        assert torch.equal(model(input_ids=ids).logits, on)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert off.shape == base.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": [["films", "books"]]}, "give two of the tasks"),
        ({"seeds": []}, "seeds is empty"),
        ({"scenarios": ["telepathy"]}, "telepathy"),
        ({"forms": ["prefix"]}, "prefix"),
        ({"attacks": {"clean": ATTACK}}, "as the floor is"),
        ({"defences": {"x": GridDefence("wish")}}, "no defence is called"),
        ({"scenarios": ["module_as_is"], "defences": {"d": GridDefence("discard")}}, "nobody does"),
    ],
)
def test_bad_grids_are_refused_before_work(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, AuditError), match=message):
        tiny_grid(tmp_path, **options)


def test_a_target_that_a_task_does_not_have(tmp_path: Path) -> None:
    attack = dataclasses.replace(ATTACK, trigger=TriggerRecipe(target=2))
    with pytest.raises(AuditError, match="target class 2"):
        run_grid(tiny_grid(tmp_path, attacks={"a": attack}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [{"format": 2}, {"after": None}, {"curve": [{"step": 0, "cacc": [5, 3], "lfr": [0, 1]}]}, {"key": {}}],
)
def test_damaged_cells_are_refused(damage: dict[str, object], tmp_path: Path) -> None:
    cell = run_grid(tiny_grid(tmp_path), tmp_path / "out")[0]
    path = tmp_path / "out" / "cells" / cell.key.file_name
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(AuditError, match="not a cell"):
        Cell.load(path)


def test_a_cells_file_is_named_by_its_key() -> None:
    key = CellKey("module_continued", "a/b", "c", "vanilla", "lora", "none", 3)
    assert key.file_name == "module_continued--a_b--c--vanilla--lora--none--3.json"
    with pytest.raises(AuditError, match="unknown scenario"):
        CellKey("other", "a", "c", "vanilla", "lora", "none", 3)  # type: ignore[arg-type]
