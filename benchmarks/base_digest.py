"""What the digest of a whole base costs against loading it, each time in a fresh process as a run would.

    python benchmarks/base_digest.py BASE_FOLDER... --out benchmarks/results/base-digest.json

Loading is `from_pretrained`, which maps the weights into memory and reads none of them: the digest is the
first to touch them all. So its share is given of that, and of what a user waits for: from the start of the
process until the base is loaded, imports included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from lightpeft.bench import result_file, save_result
from lightpeft.checkpoint import origin_of
from lightpeft.report import environment
from lightpeft.surgery import base_digests

REPEATS = 7


def main() -> None:
    """Measure each base in turn, several times over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bases", nargs="+", type=Path)
    parser.add_argument("--out", type=result_file)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--once", action="store_true", help="measure here and print JSON")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure(options.bases[0])))
        return
    found: dict[str, list[dict[str, float]]] = {base.name: [] for base in options.bases}
    for _ in range(options.repeats):
        for base in options.bases:
            command = [sys.executable, __file__, str(base), "--once"]
            now = {"STARTED": str(time.time())}
            answer = subprocess.run(
                command, check=True, capture_output=True, text=True, env=os.environ | now
            ).stdout
            found[base.name].append(json.loads(answer.splitlines()[-1]))
    result = {
        "command": "python benchmarks/base_digest.py " + " ".join(base.name for base in options.bases),
        "environment": environment(),
        "bases": {name: summary(runs) for name, runs in found.items()},
    }
    print(json.dumps(result["bases"], indent=2))
    if options.out is not None:
        save_result(options.out, result)


def measure(base: Path) -> dict[str, float]:
    """Seconds of one load, one digest, and of a second load and digest in this process."""
    is_decoder = "CausalLM" in str(AutoConfig.from_pretrained(base).architectures)
    auto_class = AutoModelForCausalLM if is_decoder else AutoModel
    start = time.perf_counter()
    model = auto_class.from_pretrained(base)
    loaded = time.perf_counter()
    base_digests(model)
    digested = time.perf_counter()
    until_loaded = time.time() - float(os.environ["STARTED"]) - (digested - loaded)
    again = auto_class.from_pretrained(base)
    loaded_again = time.perf_counter()
    base_digests(again)
    digested_again = time.perf_counter()
    origin_of(again)
    return {
        "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "start_to_loaded_seconds": until_loaded,
        "load_seconds": loaded - start,
        "digest_seconds": digested - loaded,
        "second_load_seconds": loaded_again - digested,
        "second_digest_seconds": digested_again - loaded_again,
        "compare_with_folder_seconds": time.perf_counter() - digested_again,
    }


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians, and the digest as a share of loading."""
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    shares = {
        f"digest_share_of_{name}": statistics.median(
            run["digest_seconds"] / run[f"{name}_seconds"] for run in runs
        )
        for name in ("load", "start_to_loaded")
    }
    return medians | shares | {"repeats": len(runs)}


if __name__ == "__main__":
    main()
