"""Two processes on a CPU (gloo): what they train together is what one trains with their examples."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.distributed import SCENARIOS, Texts
from tests.support.language import save_language_model
from tests.support.models import make_batch, tiny_peft
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from lightpeft.runs.joining import counts_items

HERE = Path(__file__).parent
ADAPTER = "adapter_model.safetensors"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, Any]:
    """What `distributed_runs.py` saw; one child process that forks all runs."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "distributed_runs.py"), str(root)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def assert_close(root: Path, name: str, other: str, within: float) -> None:
    first, second = (load_file(root / f"{one}.safetensors") for one in (name, other))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=0, atol=within, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_end_as_one_does(name: str, root: Path, found: dict[str, Any]) -> None:
    (alone,), together = (found["compared"][name][count] for count in ("1", "2"))
    for one in together:
        assert one["plan"]["layers"] == alone["plan"]["layers"]
        assert one["plan"]["modules"] == alone["plan"]["modules"]
        assert {**one, "plan": None} == {**alone, "plan": None, "wrapped": "DistributedDataParallel"}
    assert together[0] == together[1]
    assert_close(root, f"{name}-1-0", f"{name}-2-0", 1e-5)
    assert_close(root, f"{name}-2-0", f"{name}-2-1", 0.0)


@pytest.mark.parametrize(("step", "last"), [("3", "checkpoint-2"), ("7", "checkpoint-6")])
def test_a_run_of_which_one_process_was_killed_goes_on_to_the_same_end(
    step: str, last: str, root: Path, found: dict[str, Any]
) -> None:
    """Before the cut, and after it in the middle of a later pass over the data."""
    killed = found["killed"][step]
    assert killed["killed_by"][1] == -9
    assert killed["from"] == last
    assert killed["steps"] == [8, 8]
    for index in (0, 1):
        assert_close(root, f"killed-{step}-{index}", f"whole-{index}", 1e-5)


def test_it_does_not_go_on_in_another_number_of_processes(found: dict[str, Any]) -> None:
    (alone,) = found["killed"]["alone"]
    assert (alone["error"], alone["steps"]) == ("CheckpointError", 0)
    assert "of another run, with another number of processes" in alone["text"]


def test_where_one_verification_fails_no_process_has_a_cut_model(found: dict[str, Any]) -> None:
    first, second = found["failing"]["verification"]
    assert (first["error"], second["error"]) == ("VerificationError", "VerificationError")
    assert "layer 0 differs" in second["text"]
    assert "found by process 1 of 2" in first["text"]
    assert not first["cut"]
    assert not second["cut"]


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("lock", "InUseError", "another run"),
        ("compiled", "ConfigError", "Leave torch_compile"),
    ],
)
def test_all_processes_refuse_before_the_first_step(
    what: str, error: str, text: str, found: dict[str, Any]
) -> None:
    for one in found["failing"][what]:
        assert one["error"] == error
        assert text in one["text"]
        assert one["steps"] == 0


def test_one_process_measures_for_a_target_and_all_have_its_plan(found: dict[str, Any]) -> None:
    first, second = found["targeted"]
    assert first == second
    assert first["measured"] > 0
    assert first["plan"]["target"]["quantity"] == "inference"


def test_the_command_does_it_too_and_one_process_speaks(root: Path, found: dict[str, Any]) -> None:
    (alone,), (first, second) = (found["commanded"][count] for count in ("1", "2"))
    assert [one["status"] for one in (alone, first, second)] == [0, 0, 0]
    assert "The light model reached loss" in first["printed"]
    assert "step 4, cut" in first["errors"]
    assert (second["printed"], second["errors"]) == ("", "")
    results = [json.loads((root / f"command-{count}" / "result.json").read_text()) for count in (1, 2)]
    assert [one["config"]["processes"] for one in results] == [1, 2]
    assert results[0]["light"]["metric"] == pytest.approx(results[1]["light"]["metric"], abs=1e-5)
    adapters = [load_file(root / f"command-{count}" / "light" / ADAPTER) for count in (1, 2)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, value in adapters[0].items():
        torch.testing.assert_close(value, adapters[1][name], rtol=0, atol=1e-5)


def test_a_verb_of_one_process_refuses_several(found: dict[str, Any]) -> None:
    for one in found["commanded"]["evaluate"]:
        assert one["status"] == 2
        assert "2 processes were started (WORLD_SIZE), and evaluate is of one" in one["errors"]


@pytest.mark.parametrize(("name", "counts"), [("llama", True), ("bert", False)])
def test_a_loss_says_whether_it_counts_items(name: str, counts: bool, tmp_path: Path) -> None:
    if name == "llama":
        model: Any = AutoModelForCausalLM.from_pretrained(save_language_model(name, tmp_path / name))
        batch = next(iter(DataLoader(Texts(), batch_size=2)))
    else:
        model, batch = tiny_peft(name, tmp_path / name), make_batch(name, rows=2, labels=True)
    assert counts_items(model, batch) == counts
    assert model.training == (name == "bert")


def test_two_phases_of_parts_end_as_one_process_does(root: Path, found: dict[str, Any]) -> None:
    """Under FSDP2 by hand, as in the example."""
    plans = [
        json.loads((root / f"phases-{count}" / "light" / "pruning.json").read_text()) for count in (1, 2)
    ]
    assert plans[0]["plan"]["layers"] == plans[1]["plan"]["layers"]
    assert plans[0]["plan"]["modules"] == plans[1]["plan"]["modules"]
    alone, together = (load_file(root / f"phases-{count}" / "light" / ADAPTER) for count in (1, 2))
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(value, together[name], rtol=0, atol=1e-5)
    assert found["sharded"]["1"] == [[None, None]]
    for refusals in found["sharded"]["2"]:
        for text in refusals:
            assert "the model's parameters are in parts on several processes" in text


def test_a_loop_of_ones_own_in_two_processes_ends_as_in_one(root: Path, found: dict[str, Any]) -> None:
    (alone,), together = (found["own loops"][count] for count in ("1", "2"))
    assert together == [alone, alone]
    assert_close(root, "loop-1-0", "loop-2-0", 1e-5)
    assert_close(root, "loop-2-0", "loop-2-1", 0.0)
