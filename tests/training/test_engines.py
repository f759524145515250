"""`lightpeft train` under DeepSpeed (ZeRO, gloo, CPU): estimate and cut as under DDP, train on in parts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lightpeft
from lightpeft import ConfigError
from lightpeft.cli.main import main
from lightpeft.runs import set_engine_aside

HERE = Path(__file__).parent
APART = Path(sys.prefix) / "deepspeed"
ADAPTER = "adapter_model.safetensors"
DEEPSPEED, FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, Any]:
    """What `engine_runs.py` saw."""
    if not APART.is_dir():
        pytest.skip(f"DeepSpeed is not in {APART}, where make puts it")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(APART), os.environ.get("PYTHONPATH", "")]),
        "PATH": os.pathsep.join([str(APART / "bin"), os.environ["PATH"]]),  # of ninja
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    words = [sys.executable, str(HERE / "engine_runs.py"), str(root)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def assert_same(one: Path, other: Path, within: float) -> None:
    plans = [json.loads((folder / "pruning.json").read_text())["plan"] for folder in (one, other)]
    assert plans[0] == plans[1]
    adapters = [load_file(folder / ADAPTER) for folder in (one, other)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, value in adapters[0].items():
        torch.testing.assert_close(value, adapters[1][name], rtol=0, atol=within)


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "within"), [("zero-2", 0.0), ("zero-3", 1e-5)])
def test_zero_ends_where_ddp_does(zero: str, within: float, root: Path, found: dict[str, Any]) -> None:
    """Both begin the moments anew at the cut; schedule, rows and dropout go on."""
    assert_same(root / zero / "light", root / "ddp" / "light", within)
    lightpeft.load(root / zero / "light", root / "words")
    first, second = found[zero]
    assert (first["status"], second["status"]) == (0, 0)
    assert "The light model reached accuracy" in first["printed"]
    assert "The light model" not in second["printed"]
    assert "will not find" not in first["errors"]  # its base, which save() looks for
    result = json.loads((root / zero / "result.json").read_text())
    assert result["light"]["estimation_steps"] == 5
    assert result["curves"][0]["cut_step"] == 5
    assert result["curves"][0]["steps"][-1] >= 10


@pytest.mark.slow
def test_checkpoints_are_of_the_first_phase_and_stay_where_asked_for(
    root: Path, found: dict[str, Any]
) -> None:
    """The second phase goes on from the last of them as often as it is started."""
    assert ["step 5, cut" in found[name][0]["errors"] for name in ("zero-3", "zero-2")] == [True, False]
    kept = root / "zero-2" / "checkpoints" / "light-0"
    assert sorted(path.name for path in kept.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    assert not list((root / "zero-3" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({FSDP: "true"}, "under FSDP.*two_phase.py"),
        ({DEEPSPEED: "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero.json"}, "zero.json has a scheduler"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_is_loaded(
    environment: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "scheduler": {"type": "W"}}))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=named):
        set_engine_aside()


def test_no_engine_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEEPSPEED, "false")
    assert set_engine_aside() is None


def test_plain_peft_is_not_compared_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DEEPSPEED, "true")
    words = [
        "train",
        "--model",
        "m",
        "--task",
        "demo/sentiment",
        "--compare",
        "true",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(words) == 2
    assert "start without DeepSpeed" in capsys.readouterr().err
