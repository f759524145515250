"""A grid measured whole, on tiny models: what is kept, what is marked, what is refused, what moves."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.audit_runs import TRIGGERS, tiny_grid

from lightpeft.audit import AuditError, PolicyOptions, TriggerRecipe, is_poisoned
from lightpeft.audit.defences import DEFENCES
from lightpeft.audit.grid.attackers import switched_off
from lightpeft.audit.grid.cell import Cell, CellKey, load_cells
from lightpeft.audit.grid.entries import GridAttack, GridDefence
from lightpeft.audit.grid.grid import Grid
from lightpeft.audit.grid.run import CELLS, MODULES, run_grid
from lightpeft.audit.grid.scenarios import SCENARIOS
from lightpeft.audit.module import load_module
from lightpeft.audit.policies.table import POLICIES
from lightpeft.audit.training import train_user
from lightpeft.errors import ConfigError
from lightpeft.run_config import LoraOptions, TrainingConfig
from lightpeft.runs import load_peft_model
from lightpeft.tasks import class_head

WORDS = GridAttack(PolicyOptions("vanilla"), TriggerRecipe(target=1, pieces=TRIGGERS))
PHRASE = GridAttack(PolicyOptions("vanilla"), TriggerRecipe(target=0, form="phrase", pieces=("cf mn",)))
OPTIONS: dict[str, dict[str, Any]] = {"rap": {"rate": 0.2, "steps": 3}}
"""Of defences whose defaults take more held-out rows than there are."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A grid, where it was written, and its cells."""

    grid: Grid
    out: Path
    only: Callable[[CellKey], bool]
    cells: list[Cell]

    def cell(self, **key: object) -> Cell:
        """The one cell with these parts of its key."""
        (cell,) = [cell for cell in self.cells if all(getattr(cell.key, name) == key[name] for name in key)]
        return cell

    def module(self, attack: str, form: str = "parallel") -> Path:
        """The folder that the attacker gave away."""
        return self.out / MODULES / f"films--{attack}--{form}--0"

    def copied(self, folder: Path) -> Path:
        """What was written, to change it."""
        return Path(shutil.copytree(self.out, folder / "copy"))


def measured(root: Path, only: Callable[[CellKey], bool], **options: Any) -> Measured:
    grid = tiny_grid(root, **options)
    return Measured(grid, root / "out", only, run_grid(grid, root / "out", only=only))


@pytest.fixture(scope="module")
def defended(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Every defence against one attack, and another attack."""
    return measured(
        tmp_path_factory.mktemp("defended"),
        lambda key: key.defence == "none" or key.attack == "words",
        attacks={"words": WORDS, "phrase": PHRASE},
        defences={name: GridDefence(name, OPTIONS.get(name, {})) for name in DEFENCES},
        analyses=True,
    )


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Every scenario; of every form what the attacker gives away."""
    return measured(
        tmp_path_factory.mktemp("received"),
        lambda key: key.form == "parallel" or key.scenario == "module_as_is",
        scenarios=list(SCENARIOS),
        forms=["lora", "sequential", "parallel"],
        lora=LoraOptions(rank=4),
    )


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Every policy's module, untrained by a user; the tasks disagree, so that projections act."""
    trigger = TriggerRecipe(target=1, pieces=TRIGGERS, share=1.0)
    attacks = {name: GridAttack(PolicyOptions(name), trigger, "sgd") for name in POLICIES}
    short = TrainingConfig(max_steps=3, learning_rate=0.5, batch_size=4, max_length=12)
    return measured(
        tmp_path_factory.mktemp("policies"),
        lambda key: key.attack != "clean",
        scenarios=["module_as_is"],
        attacks=attacks,
        attacker=short,
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_gives_a_cell_and_its_floor(scenario: str, received: Measured) -> None:
    clean, bad = (
        received.cell(scenario=scenario, attack=attack, form="parallel") for attack in ("clean", "vanilla")
    )
    assert bad.key.floor() == clean.key
    assert bad.triggers_left is not None
    assert bad.triggers_left.value == 1.0
    steps = [0] if scenario == "module_as_is" else [0, 2, 4]
    for cell in (clean, bad):
        assert cell.after.cacc.total == 24
        assert cell.after.lfr.total == 12
        assert [point.step for point in cell.curve] == steps
        assert cell.after == cell.curve[-1]
    assert clean.floors == {"vanilla": clean.after.lfr}
    assert (bad.attacked is None) == (scenario == "poisoned_data")


@pytest.mark.parametrize("form", ["lora", "sequential", "parallel"])
def test_attackers_modules_are_marked_and_clean_ones_are_not(form: str, received: Measured) -> None:
    assert is_poisoned(received.module("vanilla", form))
    assert not is_poisoned(received.module("clean", form))


def test_a_poisoned_base_is_marked_and_the_light_half_refuses_it(received: Measured) -> None:
    bad, clean = received.module("vanilla", "base"), received.module("clean", "base")
    assert json.loads((bad / "config.json").read_text())["lightpeft_poisoned"] is True
    assert "lightpeft_poisoned: true" in (bad / "README.md").read_text()
    head, peft = class_head(("a", "b")), received.grid.peft("lora")
    with pytest.raises(ConfigError, match="marked as poisoned"):
        load_peft_model(str(bad), head, peft, 0)
    load_peft_model(str(clean), head, peft, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_attacks(policy: str, policies: Measured) -> None:
    layers = policies.cell(attack=policy).layers
    assert [layer.title for layer in layers] == ["layer 0", "layer 1", "output layer"]
    assert all(layer.poisoned_norm > 0 for layer in layers)
    assert (layers[0].weight is not None) == (policy in ("clnorm", "gradient_control"))


def test_policies_make_different_modules(policies: Measured) -> None:
    found: dict[bytes, list[str]] = {}
    for policy in POLICIES:
        weights = (policies.module(policy) / "adapter_model.safetensors").read_bytes()
        found.setdefault(weights, []).append(policy)
    assert [policies for policies in found.values() if len(policies) > 1] == []


@pytest.mark.parametrize("defence", DEFENCES)
def test_every_defence_is_measured(defence: str, defended: Measured) -> None:
    cell = defended.cell(attack="words", defence=defence)
    assert cell.settings["defence"][0] == defence
    guarded = DEFENCES[defence].kind == "inputs"
    assert (cell.rejected_clean is not None) == (cell.rejected_triggered is not None) == guarded
    # A module that is thrown away has no further curve.
    assert [point.step for point in cell.curve] == ([0] if defence == "discard" else [0, 2, 4])
    assert cell.curve[0] == defended.cell(attack="words", defence="none").curve[0]


def test_guards_stand_before_one_trained_model(
    defended: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def counted(model: Any, tokenizer: Any, rows: Any, training: TrainingConfig, **options: Any) -> None:
        steps.append(training.max_steps or 0)
        train_user(model, tokenizer, rows, training, **options)

    monkeypatch.setattr("lightpeft.audit.defences.defence.train_user", counted)
    shutil.copytree(defended.out / MODULES, tmp_path / "together" / MODULES)
    guards = [name for name in DEFENCES if DEFENCES[name].kind == "inputs"]
    only = lambda key: key.attack == "words" and key.defence in ("none", "longer", *guards)  # noqa: E731
    together = run_grid(defended.grid, tmp_path / "together", only=only)
    # One for all but `longer`, and PSIM's own copy.
    assert sorted(steps) == [4, 4, 12]
    for cell in together:
        name = cell.key.defence
        shutil.copytree(defended.out / MODULES, tmp_path / name / MODULES)
        only = lambda key: (key.attack, key.defence) == ("words", name)  # noqa: B023, E731
        (alone,) = run_grid(defended.grid, tmp_path / name, only=only)
        assert dataclasses.replace(alone, seconds=0) == dataclasses.replace(cell, seconds=0)


def test_analyses_measure_layers_and_similarity(defended: Measured) -> None:
    cell = defended.cell(attack="words", defence="none")
    assert [layer.lfr_without is None for layer in cell.layers] == [False, False, True]
    assert [step for step, _ in cell.similarity] == [0, 2, 4]
    assert cell.similarity[0][1] == pytest.approx(1.0)
    assert cell.similarity[2][1] < 1.0


def test_floors_are_measured_under_each_attacks_trigger(defended: Measured) -> None:
    clean = defended.cell(attack="clean")
    assert set(clean.floors) == {"words", "phrase"}
    assert clean.floor_for("words") == clean.after.lfr
    assert clean.recipe == {}
    assert defended.cell(attack="phrase").recipe["form"] == "phrase"


def test_what_is_measured_is_kept(defended: Measured) -> None:
    assert sorted(load_cells(defended.out / CELLS), key=str) == sorted(defended.cells, key=str)
    times = {path: path.stat().st_mtime_ns for path in defended.out.rglob("*")}
    assert run_grid(defended.grid, defended.out, only=defended.only) == defended.cells
    assert {path: path.stat().st_mtime_ns for path in defended.out.rglob("*")} == times


def test_other_settings_are_refused(defended: Measured, tmp_path: Path) -> None:
    grid, out = defended.grid, defended.copied(tmp_path)
    longer = dataclasses.replace(grid, user=dataclasses.replace(grid.user, max_steps=5))
    with pytest.raises(AuditError, match="other settings"):
        run_grid(longer, out)
    shutil.rmtree(out / CELLS)
    stronger = dataclasses.replace(grid, attacker=dataclasses.replace(grid.attacker, max_steps=7))
    with pytest.raises(AuditError, match="was made with other settings"):
        run_grid(stronger, out)


def test_the_same_seed_gives_the_same_cell_and_another_another(defended: Measured, tmp_path: Path) -> None:
    def again(name: str, seed: int) -> Cell:
        grid = dataclasses.replace(defended.grid, seeds=[seed])
        only = lambda key: (key.attack, key.defence) == ("words", "none")  # noqa: E731
        (cell,) = run_grid(grid, tmp_path / name, only=only)
        return dataclasses.replace(cell, seconds=0)

    first = dataclasses.replace(defended.cell(attack="words", defence="none"), seconds=0)
    assert again("same", 0) == first
    assert again("other", 1).layers != first.layers


@pytest.mark.parametrize("form", ["parallel", "base"])
def test_attackers_go_on_from_the_clean_one(form: str, tmp_path: Path) -> None:
    grid = tiny_grid(tmp_path)
    still = dataclasses.replace(grid.attacker, learning_rate=1e-9)
    grid = dataclasses.replace(
        grid,
        from_clean=True,
        clean=grid.attacker,
        attacker=still,
        scenarios=["module_as_is" if form == "parallel" else "poisoned_base"],
    )
    run_grid(grid, tmp_path / "out", only=lambda key: key.attack != "clean")
    name = "adapter_model" if form == "parallel" else "model"
    bad, clean, fresh = (
        load_file(folder / f"{name}.safetensors")
        for folder in (
            tmp_path / "out" / MODULES / f"films--vanilla--{form}--0",
            tmp_path / "out" / MODULES / f"films--clean--{form}--0",
            _untrained(grid, form, tmp_path / "fresh"),
        )
    )
    assert bad.keys() == clean.keys()
    for key, tensor in clean.items():
        torch.testing.assert_close(bad[key], tensor, rtol=0, atol=1e-6)
    fresh = {f"bert.{key}" if form == "base" else key: tensor for key, tensor in fresh.items()}
    both = bad.keys() & fresh.keys()
    assert both
    assert any(not torch.allclose(bad[key], fresh[key], atol=1e-4) for key in both)


def _untrained(grid: Grid, form: str, folder: Path) -> Path:
    if form == "base":
        return Path(grid.model)
    load_peft_model(grid.model, class_head(("a", "b")), grid.peft(form), 0).save_pretrained(folder)
    return folder


def test_modules_that_are_switched_off_compute_the_base(defended: Measured) -> None:
    model = load_module(defended.module("words"), is_trainable=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    encoder = model.get_base_model().base_model
    ids = torch.tensor([[2, 5, 9, 6, 3]])
    model.eval()
    with torch.no_grad():
        on = model(input_ids=ids).logits
        with switched_off(model):
            off = encoder(input_ids=ids).last_hidden_state
        with model.disable_adapter():
            base = encoder(input_ids=ids).last_hidden_state
        assert torch.equal(off, base)
        assert not torch.equal(encoder(input_ids=ids).last_hidden_state, base)
        assert torch.equal(model(input_ids=ids).logits, on)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": [["films", "books"]]}, "give two of the tasks"),
        ({"seeds": []}, "seeds is empty"),
        ({"attacks": {}}, "attacks is empty"),
        ({"defences": {}}, "defences is empty"),
        ({"points": 0}, "points is 0"),
        ({"scenarios": ["telepathy"]}, "telepathy"),
        ({"forms": ["prefix"]}, "prefix"),
        ({"form_rates": {"prefix": 0.1}}, "prefix"),
        ({"form_rates": {"lora": 0.1}}, "form_rates has options of forms that are not"),
        ({"lora": LoraOptions(rank=2)}, "lora has options of forms that are not"),
        ({"forms": ["lora"]}, "bottleneck has options of forms that are not"),
        ({"attacks": {"clean": WORDS}}, "as the floor is"),
        ({"attacks": {"a": GridAttack(optimizer="lion")}}, "lion"),  # type: ignore[arg-type]
        (
            {"attacks": {"a": GridAttack(PolicyOptions("ripple"), poisoned_batches="triggered_only")}},
            "policy 'ripple' learns the clean task from",
        ),
        ({"attacker": TrainingConfig(gradient_accumulation=2)}, "gradient_accumulation has no effect"),
        ({"user": TrainingConfig(eval_steps=2)}, "eval_steps has no effect"),
        ({"clean": TrainingConfig(packing=True)}, "packing has no effect"),
        ({"defences": {"x": GridDefence("wish")}}, "no defence is called"),
        ({"defences": {"none": GridDefence("discard")}}, "the floor"),
        ({"scenarios": ["module_as_is"], "defences": {"d": GridDefence("discard")}}, "nobody does"),
    ],
)
def test_bad_grids_are_refused_before_work(options: dict[str, Any], message: str, defended: Measured) -> None:
    with pytest.raises((ConfigError, AuditError), match=message):
        dataclasses.replace(defended.grid, **options)


def test_a_target_that_a_task_does_not_have(defended: Measured, tmp_path: Path) -> None:
    attack = dataclasses.replace(WORDS, trigger=TriggerRecipe(target=2))
    with pytest.raises(AuditError, match="target class 2"):
        run_grid(dataclasses.replace(defended.grid, attacks={"a": attack}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pair_with_other_numbers_of_classes(defended: Measured, tmp_path: Path) -> None:
    lines = ["text,label", *(f"the film was fine {row},{row % 3}" for row in range(60))]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    three = dataclasses.replace(defended.grid.tasks["films"], data=str(tmp_path))
    grid = dataclasses.replace(
        defended.grid, tasks=defended.grid.tasks | {"three": three}, pairs=[["films", "three"]]
    )
    with pytest.raises(AuditError, match="has 2 and 3 classes"):
        run_grid(grid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_with_slashes_make_no_folders(tmp_path: Path) -> None:
    tasks = tiny_grid(tmp_path).tasks
    grid = tiny_grid(
        tmp_path,
        tasks={"own/films": tasks["films"]},
        pairs=[["own/films", "own/films"]],
        scenarios=["module_as_is"],
    )
    (cell,) = run_grid(grid, tmp_path / "out", only=lambda key: key.attack == "clean")
    assert cell.key.user_task == "own/films"
    assert [path.name for path in (tmp_path / "out" / MODULES).iterdir()] == ["own_films--clean--parallel--0"]


@pytest.mark.parametrize(
    "damage",
    [{"format": 2}, {"after": None}, {"curve": [{"step": 0, "cacc": [5, 3], "lfr": [0, 1]}]}, {"key": {}}],
)
def test_damaged_cells_are_refused(damage: dict[str, object], defended: Measured, tmp_path: Path) -> None:
    source = defended.out / CELLS / defended.cells[0].key.file_name
    path = tmp_path / source.name
    path.write_text(json.dumps(json.loads(source.read_text()) | damage))
    with pytest.raises(AuditError, match="not a cell"):
        Cell.load(path)


def test_a_cells_file_is_named_by_its_key() -> None:
    key = CellKey("module_continued", "a/b", "c", "vanilla", "lora", "none", 3)
    assert key.file_name == "module_continued--a_b--c--vanilla--lora--none--3.json"
    with pytest.raises(AuditError, match="unknown scenario"):
        CellKey("other", "a", "c", "vanilla", "lora", "none", 3)
