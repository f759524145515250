"""A few of the benchmark's kills: nothing half written opens, and nothing that was there before is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "kill.json"
    words = [sys.executable, "-m", "benchmarks.kill", "--kills", "8", "--seed", "1", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    found = result["actions"]
    assert {name: one["killed"] for name, one in found.items()} == dict.fromkeys(found, 2)
    assert [one["half_written"] + one["lost"] for one in found.values()] == [[]] * 4
    assert result["half_written_that_load"] == result["earlier_ones_lost"] == 0
