"""A child of the SIGKILL tests: imports once, then forks a process per run and kills some of them for real.

    python killed_runs.py BASE ROOT KILLS

Every run goes through the same file-system events; KILLS is how many kill points are drawn from them, besides
the chosen ones. Prints one JSON list: per scenario where it was killed, from what it resumed and whether its
weights are those of the uninterrupted run.
"""

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.peft_model
import torch
from tests.support.runs import PAPER, trainer, weights
from transformers import TrainerCallback

import lightpeft.files
from lightpeft.checkpoint import last_complete_checkpoint

STEPS = 8
WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
UNFINISHED = 2
Event = tuple[str, str]


class Recorder:
    """Notes what happens to files below a folder; kills this process before event number `deadline`."""

    def __init__(self, folder: Path, deadline: int = -1, torn: bool = False) -> None:
        self.folder, self.deadline, self.torn = str(folder), deadline, torn
        self.events: list[Event] = []
        self.last_written: str | None = None
        sys.addaudithook(self.audit)
        torch.save = self.noting(torch.save, 1)
        for module, name in ((peft.peft_model, "safe_save_file"), (lightpeft.files, "save_file")):
            setattr(module, name, self.noting(getattr(module, name), 1))

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, str | os.PathLike):
                self.note("open", os.fspath(path), written=True)
        elif event in WRITES:
            path = arguments[1] if event == "os.rename" else arguments[0]
            if isinstance(path, str | os.PathLike):
                self.note(event, os.fspath(path))

    def noting(self, write: Callable[..., Any], position: int) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            path = os.fspath(args[position])
            self.note("write", path)
            result = write(*args, **kwargs)
            self.note("written", path, written=True)
            return result

        return noted

    def note(self, kind: str, path: str, written: bool = False) -> None:
        if not str(path).startswith(self.folder):
            return
        if len(self.events) == self.deadline:
            self.tear()
            os.kill(os.getpid(), signal.SIGKILL)
        self.events.append((kind, os.path.relpath(path, self.folder)))
        if written:
            self.last_written = path

    def tear(self) -> None:
        """The file written last reached the disk only in part."""
        if self.torn and self.last_written and Path(self.last_written).is_file():
            os.truncate(self.last_written, Path(self.last_written).stat().st_size // 2)


class KillAfterStep(TrainerCallback):
    """Kills this process between two checkpoints."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(base: Path, folder: Path, limit: int | None, callbacks: list[Any], resume: bool) -> str:
    """A whole run; the digest of its weights."""
    run = trainer(
        base,
        folder,
        PAPER,
        callbacks=callbacks,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=limit,
    )
    run.train(resume_from_checkpoint=resume)
    digest = hashlib.sha256()
    for name, value in weights(run.model).items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """Exit status (negative: signal) and JSON result of `work` in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def uninterrupted(base: Path, folder: Path, limit: int | None) -> tuple[str, list[Event]]:
    def work() -> Any:
        recorder = Recorder(folder)
        return train(base, folder, limit, [], False), recorder.events

    status, result = forked(work)
    assert status == 0, status
    digest, events = result
    return digest, [(kind, path) for kind, path in events]


def killed(
    base: Path, folder: Path, limit: int | None, deadline: int, torn: bool, step: int | None
) -> dict[str, Any]:
    """Kill one run, resume it, and tell what happened."""

    def first() -> Any:
        Recorder(folder, deadline, torn)
        return train(base, folder, limit, [] if step is None else [KillAfterStep(step)], False)

    def second() -> Any:
        found = last_complete_checkpoint(folder)
        digest = train(base, folder, limit, [], found is not None)
        return {"from": found.name if found else None, "digest": digest}

    killed_by, _ = forked(first)
    status, result = forked(second)
    return {"killed_by": -killed_by, "status": status, **(result or {})}


def complete_before(events: list[Event], deadline: int) -> list[str]:
    """Checkpoints whose marker was in place when the process was killed."""
    found = {name: marked(events, name) for name in dict.fromkeys(path.split("/")[0] for _, path in events)}
    return [name for name, index in found.items() if index is not None and index < deadline]


def marked(events: list[Event], checkpoint: str) -> int | None:
    """The event that declared it whole; before, callback and Trainer declare it unfinished."""
    marker = ("os.rename", f"{checkpoint}/lightpeft_complete.json")
    times = [index for index, event in enumerate(events) if event == marker]
    return times[UNFINISHED] if len(times) > UNFINISHED else None


def chosen(events: list[Event], extra: int) -> list[int]:
    """Kill points: at, between and after the writes of the checkpoints around the cut, and drawn ones."""
    points = set()
    for checkpoint in ("checkpoint-4", "checkpoint-6"):
        mine = [i for i, (_, path) in enumerate(events) if path.startswith(checkpoint)]
        marker = marked(events, checkpoint)
        assert marker is not None
        points |= {mine[len(mine) // 3], marker, marker + 1}
    return sorted(points | set(random.Random(3).sample(range(len(events)), extra)))


def main(base: Path, root: Path, extra: int) -> list[dict[str, Any]]:
    """All scenarios."""
    found = []
    for limit in (None, 1):
        expected, events = uninterrupted(base, root / f"whole-{limit}", limit)
        scenarios: list[tuple[int, bool, int | None]] = [
            (point, number % 2 == 0, None) for number, point in enumerate(chosen(events, extra))
        ]
        if limit is None:
            scenarios += [(-1, False, 3), (-1, False, 5)]
        for number, (deadline, torn, step) in enumerate(scenarios):
            folder = root / f"run-{limit}-{number}"
            result = killed(base, folder, limit, deadline, torn, step)
            complete = complete_before(events, deadline)
            if step is not None:
                complete = [f"checkpoint-{n}" for n in range(2, step + 1, 2)]
            where = f"step {step}" if step is not None else " ".join(events[deadline])
            result |= {"limit": limit, "where": where, "torn": torn, "complete": complete}
            result["same"] = result.pop("digest", None) == expected
            found.append(result)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = sys.stdout
    sys.stdout = sys.stderr
    result = main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    json.dump(result, out)
