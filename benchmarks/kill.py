"""SIGKILL at random moments of train, save, export and scan, over outputs that were there before.

python -m benchmarks.kill --kills 200 --out benchmarks/results/kill.json

Everything is a tiny random model, made here. One process imports and prepares; each trial copies the room
with the earlier outputs, forks, and kills the fork after a random part of the time that the action takes.
Then each output is opened. It must be the earlier one or the new one: `half_written` counts those that open
and are neither, `lost` those that do not open. Then the action is done again, from what is there: it must
give what it gives when nobody kills it (a training run goes on from its newest whole checkpoint), and leave
no litter.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tests.support.audit_runs import save_tiny_base
from tests.support.models import load_base, make_batch
from tests.support.plans import random_plan
from tests.support.received_modules import fresh_module
from tests.support.runs import PAPER, fresh_model, trainer
from transformers.utils import logging

import lightpeft
from lightpeft.bench import result_file, save_result
from lightpeft.checkpoint import last_complete_checkpoint
from lightpeft.cli.main import main as command_line
from lightpeft.report import environment

STEPS, BEFORE = 6, 2
"""Of the training run, and how many were done before."""


@dataclass(frozen=True)
class Action:
    """Something that writes."""

    work: Callable[[Path], None]
    """What is killed; it works in a copy of the room."""
    look: Callable[[Path], list[str]]
    """What is there: a digest of each output's function; raises if one cannot be opened."""


@dataclass
class Found:
    """What the trials of one action gave."""

    killed: int = 0
    finished_before: int = 0
    old: int = 0
    new: int = 0
    half_written: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=result_file, required=True)
    options = parser.parse_args()
    result = run(options.kills, options.seed)
    save_result(options.out, result | {"environment": environment()})
    print(json.dumps(result, indent=2))


def run(kills: int, seed: int) -> dict[str, Any]:
    """Kill so often, the actions taking turns; JSON values."""
    started, draw = time.perf_counter(), random.Random(seed)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, quiet():
        root = Path(folder)
        room = make_room(root / "room")
        trials = {name: Trials(action, room, root) for name, action in ACTIONS.items()}
        for number in range(kills):
            list(trials.values())[number % len(trials)].trial(draw.random())
    found = {name: vars(one.found) | {"seconds_uninterrupted": one.seconds} for name, one in trials.items()}
    return {
        "kills": kills,
        "seed": seed,
        "half_written_that_load": sum(len(one["half_written"]) for one in found.values()),
        "earlier_ones_lost": sum(len(one["lost"]) for one in found.values()),
        "actions": found,
        "seconds": time.perf_counter() - started,
    }


class Trials:
    """One action, killed again and again."""

    def __init__(self, action: Action, room: Path, root: Path) -> None:
        self.action, self.room, self.root = action, room, root
        self.found = Found()
        with self._copy() as copy:
            self.old = action.look(copy)
            start = time.perf_counter()
            assert wait_for(forked(lambda: action.work(copy))) == 0, "the action fails by itself"
            self.seconds = time.perf_counter() - start
            self.new = action.look(copy)
        assert not set(self.old) & set(self.new), "nobody could tell the old from the new"

    def trial(self, part: float) -> None:
        """Kill once, after this part of the action's time; a fork that was faster does not count."""
        while True:
            with self._copy() as copy:
                child = forked(lambda: self.action.work(copy))
                time.sleep(part * self.seconds)
                os.kill(child, signal.SIGKILL)
                if wait_for(child) == -signal.SIGKILL:
                    self._judge(copy, f"after {part:.3f} of {self.seconds:.2f} s")
                    return
            self.found.finished_before += 1
            part *= 0.9

    def _judge(self, copy: Path, when: str) -> None:
        self.found.killed += 1
        try:
            seen = self.action.look(copy)
        except Exception as error:
            self.found.lost.append(f"{when}: {type(error).__name__}: {error}")
            return
        for digest, old, new in zip(seen, self.old, self.new, strict=True):
            if digest not in (old, new):
                self.found.half_written.append(when)
        self.found.old += seen == self.old
        self.found.new += seen == self.new
        assert wait_for(forked(lambda: self.action.work(copy))) == 0, f"{when}: it cannot be done again"
        assert self.action.look(copy) == self.new, f"{when}: done again it gives something else"
        left = [str(path) for path in copy.rglob(".*") if path.suffix in (".part", ".old")]
        assert not left, f"{when}: {left} is left"

    @contextlib.contextmanager
    def _copy(self) -> Iterator[Path]:
        copy = Path(shutil.copytree(self.room, self.root / "copy"))
        try:
            yield copy
        finally:
            shutil.rmtree(copy)


def make_room(room: Path) -> Path:
    """Bases, modules, and an earlier output of every action."""
    base = save_tiny_base(room / "base")
    for seed in (0, 1):
        fresh_module(base, room / f"module-{seed}", seed=seed)
    (room / "module-1" / "training_args.bin").touch()  # a warning that the other one has not
    lightpeft.save(cut_model(base, 3), room / "other")
    lightpeft.save(cut_model(base, 1), room / "light")
    lightpeft.export_merged(room / "light", room / "merged", load_base(base))
    lightpeft.export_full_adapter(room / "light", room / "full", load_base(base))
    run_of(room).train()
    lightpeft.save(cut_model(base, 1), room / "run" / "light")
    for number in range(BEFORE + 1, STEPS + 1):
        shutil.rmtree(room / "run" / f"checkpoint-{number}")
    assert command_line(["audit", "scan", str(room / "module-0"), *scan_options(room)]) == FILES_ONLY
    return room


def cut_model(base: Path, seed: int) -> PeftModel:
    model = fresh_model(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    lightpeft.cut(model, random_plan(model, seed=seed))
    return model


def run_of(room: Path) -> Any:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": STEPS}
    return trainer(room / "base", room / "run", PAPER, **options)


FILES_ONLY = 2
"""Exit status of a scan without the user's texts."""


def scan_options(room: Path) -> list[str]:
    return ["--base", str(room / "base"), "--sarif", str(room / "found.sarif")]


def train(room: Path) -> None:
    run = run_of(room)
    run.train(resume_from_checkpoint=True)
    lightpeft.save(run.model, room / "run" / "light")


def trained(room: Path) -> list[str]:
    last = last_complete_checkpoint(room / "run")
    assert last is not None, "no checkpoint"
    assert int(last.name.rpartition("-")[2]) >= BEFORE, f"only {last.name}"
    return [logits_of(lightpeft.load(room / "run" / "light", load_base(room / "base")))]


def save(room: Path) -> None:
    lightpeft.save(cut_model(room / "base", 2), room / "light")


def saved(room: Path) -> list[str]:
    return [logits_of(lightpeft.load(room / "light", load_base(room / "base")))]


def export(room: Path) -> None:
    lightpeft.export_merged(room / "other", room / "merged", load_base(room / "base"))
    lightpeft.export_full_adapter(room / "other", room / "full", load_base(room / "base"))


def exported(room: Path) -> list[str]:
    whole = PeftModel.from_pretrained(load_base(room / "base"), str(room / "full"))
    return [logits_of(lightpeft.load_merged(room / "merged")), logits_of(whole)]


def scan(room: Path) -> None:
    assert command_line(["audit", "scan", str(room / "module-1"), *scan_options(room)]) == FILES_ONLY


def scanned(room: Path) -> list[str]:
    results = json.loads((room / "found.sarif").read_text())["runs"][0]["results"]
    return [json.dumps(results, sort_keys=True)]


ACTIONS = {
    "train": Action(train, trained),
    "save": Action(save, saved),
    "export": Action(export, exported),
    "scan": Action(scan, scanned),
}


def logits_of(model: Any) -> str:
    with torch.no_grad():
        logits = model.eval()(**make_batch("bert")).logits
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest()


def forked(work: Callable[[], None]) -> int:
    """The process id of a fork that does `work`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def wait_for(child: int) -> int:
    """Exit status; negative: the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the verbs and the Trainer print."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()
