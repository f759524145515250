"""What answers at once: help and wrong usage import nothing of what the verbs work with."""

import json
import subprocess
import sys

import pytest

from lightpeft.cli import audit, bench
from lightpeft.cli.main import VERBS

HEAVY = {
    "torch", "transformers", "peft", "datasets", "accelerate", "huggingface_hub", "tokenizers",
    "numpy", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib",
}  # fmt: skip
MOST_MODULES = 450
"""Half of them Python's own; torch alone brings 900."""

GROUPS = {"bench": bench.BENCHMARKS, "audit": tuple(audit.VERBS)}
LEAVES = [
    *((verb,) for verb in VERBS if verb not in GROUPS),
    *((group, verb) for group, verbs in GROUPS.items() for verb in verbs),
]
ASKED = [["--help"], ["--version"], ["audit", "--help"], *([*leaf, "--help"] for leaf in LEAVES)]
RUN = f"""
import atexit, json, sys

def say() -> None:
    roots = {{name.partition(".")[0] for name in sys.modules}}
    print(json.dumps([len(sys.modules), sorted(roots & {HEAVY!r})]), file=sys.stderr)

atexit.register(say)
from lightpeft.cli.main import main
sys.exit(main())
"""


def asked(words: list[str]) -> tuple[subprocess.CompletedProcess[str], int, list[str]]:
    """The command in a new process, how many modules it imported, and which heavy packages."""
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, timeout=60)
    count, heavy = json.loads(done.stderr.splitlines()[-1])
    return done, count, heavy


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_help_imports_no_more_than_it_shows(words: list[str]) -> None:
    done, count, heavy = asked(words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0." if words == ["--version"] else "usage: lightpeft")
    assert heavy == []
    assert count < MOST_MODULES


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if leaf != ("audit", "scan")], ids=" ".join)
def test_wrong_usage_is_told_before_anything_is_imported(leaf: tuple[str, ...]) -> None:
    done, _, heavy = asked([*leaf, "--nonsense", "1"])
    assert done.returncode == 2
    assert "unknown option --nonsense" in done.stderr
    assert heavy == []
