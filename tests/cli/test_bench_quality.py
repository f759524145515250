"""`bench quality` on a tiny model: cells that are kept, claimed, refused; and what is said of them."""

import dataclasses
import fcntl
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from benchmarks.estimation_length import read_grid
from tests.cli.test_task_kinds import ROWS, write
from torch import nn

from lightpeft.bench.cells import CELLS, PARTS, Cell
from lightpeft.bench.grid import PLAIN, CellKey, GridMethod, GridModel, GridTask, QualityGrid
from lightpeft.bench.methods import KNOWN
from lightpeft.bench.quality_report import difference, page, read_cells
from lightpeft.bench.rows import select_rows
from lightpeft.cli.main import main
from lightpeft.config import LightConfig
from lightpeft.errors import ConfigError
from lightpeft.outputs import LOCK
from lightpeft.tasks import custom_task, load_task

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"
GRID = {
    "models": {"tiny": {"model": "somebody/tiny", "training": {"learning_rate": 1e-2}}},
    "tasks": {
        "mood": {"task": "demo/sentiment", "train_rows": 24, "validation_rows": 12},
        "tags": {
            "task": "own",
            "data": "tags",
            "text": ["tokens"],
            "label": "tags",
            "objective": "token-classification",
            "seeds": [0],
        },
    },
    "methods": {
        "plain": {},
        "default": {},
        "half": {"like": "default", "light": {"budget": {"heads": 0.5}}, "lora": {"rank": 4}},
    },
    "seeds": [0, 1],
    "training": {"max_steps": 4, "batch_size": 4, "max_length": 24},
    "inference_repeats": 2,
}
NAMES = [f"tiny--mood--{method}--{seed}" for seed in (0, 1) for method in GRID["methods"]] + [
    f"tiny--tags--{method}--0" for method in GRID["methods"]
]


@pytest.fixture
def command(tiny_model: Path, tmp_path: Path) -> list[str]:
    """The verb on the grid, with the base in a folder of bases."""
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "tiny").symlink_to(tiny_model)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "tags", ROWS["tags"].example)
    save(tmp_path, GRID)
    words = ["bench", "quality", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]
    return [*words, "--data", str(tmp_path / "data"), "--bases", str(tmp_path / "bases")]


def save(folder: Path, grid: dict[str, Any]) -> None:
    (folder / "grid.yaml").write_text(yaml.safe_dump({"grid": grid}))


def files(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (folder / "out" / CELLS).glob("*.json")}


def test_cells_are_measured_once_and_told(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--only-methods", "plain,default", "--seeds", "0"]) == 0
    first = files(tmp_path)
    assert sorted(first) == sorted(name for name in NAMES if name.endswith("0") and "half" not in name)
    assert main(command) == 0
    everything = files(tmp_path)
    assert sorted(everything) == sorted(NAMES)
    assert {name: everything[name] for name in first} == first
    assert {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")} == {
        *(CELLS, "report.md", "frontier.svg")
    }

    cells = {name: Cell.load(tmp_path / "out" / CELLS / f"{name}.json") for name in NAMES}
    plain, half = cells["tiny--mood--plain--0"], cells["tiny--mood--half--0"]
    assert (plain.encoder, plain.peft, plain.kept) == (1, 1, None)
    assert half.encoder < cells["tiny--mood--default--0"].encoder < 1
    assert half.peft < 0.5
    assert half.kept is not None
    assert half.kept["heads"] == 4
    assert half.inference is not None
    assert half.rows == {"train": 24, "validation": 12}
    assert half.digests == plain.digests
    assert len(half.mains_without) == 12
    assert statistics.fmean(half.mains_without) == pytest.approx(half.main)
    assert len(cells["tiny--tags--plain--0"].mains_without) == 12
    assert str(tmp_path) not in "".join(map(str, everything.values()))

    text = (tmp_path / "out" / "report.md").read_text()
    mean = 100 * statistics.fmean(cells[f"tiny--mood--half--{seed}"].main for seed in (0, 1))
    assert f"| {mean:.1f} ± " in text
    assert all(f"`{method}`" in text for method in GRID["methods"])
    capsys.readouterr()
    assert main([*command, "--report"]) == 0
    assert (tmp_path / "out" / "report.md").read_text() == text
    assert (tmp_path / "out" / "frontier.svg").read_text().startswith("<svg")


def test_other_settings_are_refused_before_anything_runs(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["--only-methods", "plain", "--only-tasks", "mood", "--seeds", "0"]
    assert main([*command, *only]) == 0
    save(tmp_path, GRID | {"training": {"max_steps": 5, "batch_size": 4, "max_length": 24}})
    assert main([*command, "--report"]) == 0
    told = (tmp_path / "out" / "report.md").read_text()
    assert f"Measured with other settings than the grid has now: {NAMES[0]}." in told
    assert main(command) == 1
    assert (
        "other settings than the grid has now (training.max_steps 4 instead of 5)" in capsys.readouterr().err
    )
    assert len(files(tmp_path)) == 1
    (tmp_path / "out" / CELLS / f"{NAMES[0]}.json").write_text("{}")
    assert main(command) == 1
    assert "is no cell of bench quality" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0,5"], "seeds has 5, which the grid does not; it has [0, 1]"),
        (["--only-methods", "halb"], "only_methods is 'halb'"),
        (["--only-tasks", "moods"], "only_tasks is 'moods'"),
    ],
)
def test_what_is_not_in_the_grid_is_refused(
    words: list[str], message: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_cell_that_another_process_is_at_is_left_to_it(command: list[str], tmp_path: Path) -> None:
    busy = tmp_path / "out" / CELLS / NAMES[0]
    busy.mkdir(parents=True)
    with (busy / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main([*command, "--only-tasks", "mood", "--seeds", "0"]) == 0
    assert sorted(files(tmp_path)) == sorted(NAMES[1:3])


def test_a_cell_that_fails_is_named_and_the_others_are_kept(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = {"diverging": {"like": "plain", "training": {"learning_rate": 1e30}}, "plain": {}}
    save(tmp_path, GRID | {"methods": methods})
    assert main([*command, "--only-tasks", "mood", "--seeds", "0"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "1 cells failed (tiny--mood--diverging--0); the first: " in told
    assert list(files(tmp_path)) == ["tiny--mood--plain--0"]


def cell(method: str, seed: int, right: list[int]) -> Cell:
    """Accuracy on rows that are right (1) or wrong (0)."""
    values = np.array(right, dtype=float)
    parts = min(PARTS, len(values))
    part_of = np.arange(len(values)) % parts
    return Cell(
        CellKey("m", "t", method, seed),
        *({}, "accuracy", float(values.mean()), {}),
        [float(values[part_of != part].mean()) for part in range(parts)],
        *({"train": 1, "validation": len(right)}, {}, 1.0, 1.0, None, 1.0, None, None, None, {}),
    )


def test_the_difference_to_plain_is_paired() -> None:
    """With one row a part the jackknife is the standard error of a mean."""
    draw = np.random.default_rng(0)
    own, plain = draw.integers(0, 2, (2, PARTS)).tolist()
    found = difference([cell("own", 0, own)], [cell("plain", 0, plain)])
    apart = [one - other for one, other in zip(own, plain, strict=True)]
    assert found is not None
    assert found.mean == pytest.approx(statistics.fmean(apart))
    assert found.error == pytest.approx(statistics.stdev(apart) / math.sqrt(PARTS))


def test_seeds_count_in_the_error_and_only_those_of_both() -> None:
    always, never = [1] * PARTS, [0] * PARTS
    own = [cell("own", 0, always), cell("own", 1, never), cell("own", 2, never)]
    plain = [cell("plain", 0, never), cell("plain", 1, never)]
    found = difference(own, plain)
    assert found is not None
    assert found.mean == 0.5
    assert found.error == pytest.approx(math.sqrt(statistics.variance([1, 0]) / 2))
    assert difference(own[2:], plain) is None


GIVEN: dict[str, Any] = {"models": {"m": GridModel("m")}, "tasks": {"t": GridTask("demo/sentiment")}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": {}}, "methods is empty"),
        ({"methods": {"mine": GridMethod()}}, "methods: mine: like is 'mine'"),
        ({"methods": {"plain": GridMethod(light={"budget": {}})}}, "plain cuts nothing"),
        (
            {"methods": {"default": GridMethod(light={"budgit": {}})}},
            "no option 'budgit'. Did you mean 'budget'",
        ),
        ({"methods": {"default": GridMethod(light={"budget": 3})}}, "light.budget is 3; give its options"),
        ({"methods": {"default": GridMethod(light={"budget": {"heads": 2}})}}, "budget.heads"),
        ({"methods": {"default": GridMethod(training={"epoch": 2})}}, "Did you mean 'epochs'"),
        ({"methods": {"default": GridMethod(lora={"rank": 0})}}, "lora.rank is 0"),
        ({"methods": {"a--b": GridMethod("plain")}}, "has the name 'a--b'"),
        ({"models": {"../m": GridModel("m")}}, "has the name '../m'"),
        ({"tasks": {"t": GridTask("demo/sentiment", models=["n"])}}, "models of a task is 'n'"),
        ({"seeds": [-1]}, "seeds is -1"),
        ({"inference_repeats": -1}, "inference_repeats is -1"),
    ],
)
def test_a_grid_that_cannot_be_measured_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QualityGrid(**GIVEN | {"methods": {"plain": GridMethod()}} | values)


def test_options_add_up_from_the_grid_to_the_method() -> None:
    grid = QualityGrid(
        {
            "m": GridModel(
                "m", {"learning_rate": 0.2, "epochs": 2.0, "batch_size": 2}, lora={"rank": 2, "alpha": 9}
            )
        },
        {"t": GridTask("demo/sentiment", training={"epochs": 3.0, "batch_size": 3}, seeds=[7])},
        {"plain": GridMethod(training={"batch_size": 4}, lora={"rank": 5})},
        training={"learning_rate": 0.1, "max_length": 50},
    )
    (key,) = grid.keys()
    training, lora = grid.training_of(key), grid.peft_of(key).lora
    assert (training.learning_rate, training.epochs, training.batch_size) == (0.2, 3.0, 4)
    assert (training.max_length, training.seed) == (50, 7)
    assert (lora.rank, lora.alpha) == (5, 9)


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_method_can_be_a_row(name: str) -> None:
    grid = QualityGrid(**GIVEN, methods={name: GridMethod()})
    record = grid.record(next(grid.keys()))
    assert json.loads(json.dumps(record)) == record
    assert (record["light"] is None) == (KNOWN[name].light is None)


def test_rivals_are_what_their_names_say() -> None:
    random, gradient = (KNOWN[name].light(500) for name in ("random", "gradient-layers"))  # type: ignore[misc]
    default = LightConfig()
    assert random == dataclasses.replace(
        default, estimation=dataclasses.replace(default.estimation, base_score="random")
    )
    assert (gradient.estimation.steps, gradient.estimation.base_score) == (5, "fisher")
    assert (gradient.budget.layers, gradient.budget.heads, gradient.budget.modules) == (1 / 3, 0, 0)


def test_validation_rows_are_drawn_once_and_questions_stay_whole(tmp_path: Path) -> None:
    task = load_task("demo/sentiment", sizes={"train": 20, "validation": 30})
    chosen = select_rows(task, validation_rows=8).validation["text"]
    assert len(set(chosen)) == 8
    assert chosen == select_rows(task, train_rows=4, validation_rows=8).validation["text"]
    rows = [{"a": f"text {i}", "label": i % 2, "group": str(i // 4), "candidate": "x"} for i in range(8)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = load_task(custom_task(("a",), objective="candidate-classification"), tmp_path)
    with pytest.raises(ConfigError, match="scored by whole questions"):
        select_rows(whole, validation_rows=4)


def test_cells_on_other_rows_are_not_compared(tmp_path: Path) -> None:
    grid = QualityGrid(**GIVEN, methods={"plain": GridMethod(), "default": GridMethod()})
    for key in grid.keys():  # noqa: SIM118
        own = dataclasses.replace(cell(key.method, 0, [0, 1]), key=key, digests={"validation": key.method})
        own.save(tmp_path / CELLS / f"{key.name}.json")
    with pytest.raises(Exception, match="was measured on other rows of t"):
        page(grid, read_cells(grid, tmp_path))


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("audit")),
    ids=lambda path: path.stem,
)
def test_the_grids_of_the_project_can_be_measured(path: Path) -> None:
    grid = read_grid(path)
    assert PLAIN in grid.methods
    assert sum(1 for _ in grid.keys()) > 5  # noqa: SIM118


def test_inference_is_measured_without_the_autocast_of_the_run(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain model under it, beside one without, would look fast."""
    dtypes = []

    def watched(model: nn.Module, plain: nn.Module, batches: Any, repeats: int) -> float:
        with torch.no_grad():
            dtypes.extend(one(**batches[0]).logits.dtype for one in (model, plain))
            dtypes.append(_inside(model, batches[0]))
        return 1.0

    def _inside(model: nn.Module, batch: Any) -> torch.dtype:
        seen: list[torch.dtype] = []
        linear = next(one for one in model.modules() if isinstance(one, nn.Linear))
        handle = linear.register_forward_hook(lambda *found: seen.append(found[2].dtype))
        model(**batch)
        handle.remove()
        return seen[0]

    monkeypatch.setattr("lightpeft.bench.cells.inference_share", watched)
    save(tmp_path, GRID | {"training": GRID["training"] | {"precision": "bfloat16"}})
    assert main([*command, "--only-methods", "plain", "--only-tasks", "mood", "--seeds", "0"]) == 0
    assert dtypes == [torch.float32] * 3


def test_a_task_without_a_measured_time_leaves_the_others_in_the_table(
    command: list[str], tmp_path: Path
) -> None:
    assert main([*command, "--only-methods", "plain", "--seeds", "0"]) == 0
    path = tmp_path / "out" / CELLS / "tiny--mood--plain--0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inference": None}))
    assert main([*command, "--report"]) == 0
    wanted = Cell.load(path.with_name("tiny--tags--plain--0.json")).inference
    assert f"| 1.00 | 1.00 | {wanted:.2f} | 2 |" in (tmp_path / "out" / "report.md").read_text()
