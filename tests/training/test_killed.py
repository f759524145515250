"""SIGKILL while saving and between checkpoints, before and after the cut: the run goes on to the same end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import save_base

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `killed_runs.py` saw; one child process that forks all runs."""
    root = tmp_path_factory.mktemp("killed")
    base = save_base("bert", root / "base", dropout=0.1)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_runs.py"), str(base), str(root), "2"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_the_runs_were_killed(scenarios: list[dict[str, Any]]) -> None:
    assert len(scenarios) >= 14
    assert {one["killed_by"] for one in scenarios} == {9}
    places = " ".join(one["where"] for one in scenarios)
    for part in ("step 3", "step 5", "checkpoint-4/", "checkpoint-6/"):
        assert part in places


def test_every_run_resumes(scenarios: list[dict[str, Any]]) -> None:
    assert [one for one in scenarios if one["status"] != 0] == []


def test_every_run_ends_with_the_weights_of_the_uninterrupted_one(
    scenarios: list[dict[str, Any]],
) -> None:
    assert [one for one in scenarios if not one["same"]] == []


def test_only_checkpoints_that_were_written_whole_are_used(
    scenarios: list[dict[str, Any]],
) -> None:
    wrong = [one for one in scenarios if one["from"] is not None and one["from"] not in one["complete"]]
    assert wrong == []


def test_no_run_loses_the_last_checkpoint_that_was_whole(scenarios: list[dict[str, Any]]) -> None:
    """With save_total_limit=1 the old checkpoint may go only when the new one is whole."""
    lost = [one for one in scenarios if one["complete"] and one["from"] != one["complete"][-1]]
    assert lost == []
