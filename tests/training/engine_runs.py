"""A child of the tests with DeepSpeed: `lightpeft train` by two processes, under it and under DDP alone.

    python engine_runs.py ROOT

Prints one JSON object of what the runs printed; their light checkpoints are in ROOT.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests.support.word_bert import save_word_bert
from tests.training.distributed_runs import TOGETHER, forked, printed, results

import lightpeft.runs
from lightpeft.runs.engines import DeepSpeed


class Ddp(DeepSpeed):
    """None: a second phase that is like the first, but for the moments."""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        yield

    def require_in(self, trainer: Any) -> None:
        pass


def run(root: Path, name: str, engine: int | None, **flags: Any) -> list[dict[str, Any]]:
    """`lightpeft train` in two processes, from the cut on under ZeRO of stage `engine`."""
    options = {
        "model": root / "words",
        "task": "demo/sentiment",
        "out": root / name,
        "train_limit": 60,
        "training.batch_size": 4,
        "training.epochs": 2,
        "training.learning_rate": 3e-3,
        "estimation.steps": 5,
        **flags,
    }
    words = ["train", *(word for flag, value in options.items() for word in (f"--{flag}", str(value)))]

    def work(index: int) -> Any:
        if engine is None:
            lightpeft.runs.set_engine_aside = Ddp
        else:
            os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(engine)}
        return printed(words)

    return results(forked(TOGETHER, work))


def main(root: Path) -> dict[str, Any]:
    """All runs; the one under ZeRO 2 is the second phase of the one under DDP again."""
    save_word_bert(root / "words")
    saving = {"training.save_steps": 2}
    found = {"zero-3": run(root, "zero-3", 3), "ddp": run(root, "ddp", None, **saving)}
    shutil.copytree(root / "ddp" / "checkpoints", root / "zero-2" / "checkpoints")
    found["zero-2"] = run(root, "zero-2", 2, resume="true", **saving)
    return found


if __name__ == "__main__":
    import deepspeed  # once for all processes

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which it would build first
    torch.set_num_threads(1)
    out = sys.stdout
    sys.stdout = sys.stderr
    json.dump(main(Path(sys.argv[1])), out)
