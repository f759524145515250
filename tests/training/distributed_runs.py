"""A child of the tests with several processes: imports once, then forks one or two processes per run.

    python distributed_runs.py ROOT

Prints one JSON object of what the runs found; their weights are in ROOT.
"""

import dataclasses
import io
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tests.support.distributed import SCENARIOS, Scenario
from tests.support.language import save_language_model, sentences, write_texts
from tests.support.models import save_base
from tests.support.runs import DEFAULT, PAPER, Sentences, fresh_model, trainer, weights
from tests.support.word_bert import save_word_bert
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate
from transformers import TrainerCallback

import lightpeft
from lightpeft import Target
from lightpeft.checkpoint import last_complete_checkpoint
from lightpeft.cli.main import main as command
from lightpeft.outputs import locked
from lightpeft.processes import Processes
from lightpeft.surgery import record_of
from lightpeft.training import renew

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_phase.py"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STEPS = 8
TOGETHER = 2
Work = Callable[[int], Any]


def forked(count: int, work: Work) -> list[tuple[int, Any]]:
    """Exit status (negative: signal) and JSON result of `work` in processes of one group, by their index.

    When one ends badly, the others are ended, as torchrun does it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(index, count, port, work) for index in range(count)]
    statuses: dict[int, int] = {}
    while len(statuses) < count:
        child, status = os.wait()
        statuses[child] = os.waitstatus_to_exitcode(status)
        if statuses[child] != 0:
            for other, _ in children:
                if other not in statuses:
                    os.kill(other, signal.SIGKILL)
    found = []
    for child, reader in children:
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        found.append((statuses[child], json.loads(text) if text else None))
    return found


def _fork(index: int, count: int, port: int, work: Work) -> tuple[int, int]:
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    status = 1
    try:
        os.close(reader)
        if count > 1:
            os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "MASTER_PORT": str(port)}
            os.environ |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        result = work(index)
        with os.fdopen(writer, "w") as pipe:
            json.dump(result, pipe)
        if count > 1:
            dist.barrier()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class KillAtStep(TrainerCallback):
    """Ends this process in the middle of the step after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def compared(name: str, scenario: Scenario, root: Path) -> dict[str, Any]:
    """A scenario in one process and in two, with the same examples in each step."""
    found = {}
    for count in (1, TOGETHER):

        def work(index: int, count: int = count) -> Any:
            folder = root / f"{name}-{count}"
            run, light = scenario.make(root, folder, count)
            run.train()
            own = weights(run.model)
            save_file(own, root / f"{name}-{count}-{index}.safetensors")
            assert light.plan is not None
            return {
                "plan": light.plan.to_dict(),
                "scored": light.scores.scored_steps,
                "checkpoints": sorted(path.name for path in folder.glob("checkpoint-*")),
                "narrow": bool(record_of(run.model).first_token),
                "frozen": light.session.report.encoder_after,
                "wrapped": type(run.model_wrapped).__name__,
            }

        found[str(count)] = results(forked(count, work))
    return found


def results(outcomes: list[tuple[int, Any]]) -> list[Any]:
    """Of processes that all ended well."""
    assert [status for status, _ in outcomes] == [0] * len(outcomes), outcomes
    return [result for _, result in outcomes]


def killed(root: Path) -> dict[str, Any]:
    """One of two processes is killed before and after the cut; both are started again."""
    options = {
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "group_by_length",
        "average_tokens_across_devices": False,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 2,
    }

    def prepared(folder: Path, callbacks: list[Any]) -> Any:
        return trainer(root / "dropping", folder, DEFAULT, callbacks=callbacks, **options)

    def train(folder: Path, callbacks: list[Any], resume: bool) -> Any:
        run = prepared(folder, callbacks)
        run.train(resume_from_checkpoint=resume)
        return run

    def whole(index: int) -> Any:
        run = train(root / "whole", [], False)
        save_file(weights(run.model), root / f"whole-{index}.safetensors")

    found: dict[str, Any] = {}
    results(forked(TOGETHER, whole))
    for step in (3, 7):
        folder = root / f"killed-{step}"

        def first(index: int, folder: Path = folder, step: int = step) -> Any:
            train(folder, [KillAtStep(step)] if index == 1 else [], False)

        def second(index: int, folder: Path = folder, step: int = step) -> Any:
            run = train(folder, [], True)
            save_file(weights(run.model), root / f"killed-{step}-{index}.safetensors")
            return run.state.global_step

        ended = forked(TOGETHER, first)
        last = last_complete_checkpoint(folder)
        found[str(step)] = {
            "killed_by": [status for status, _ in ended],
            "from": None if last is None else last.name,
            "steps": results(forked(TOGETHER, second)),
        }
    alone = forked(1, lambda index: _refusal(prepared(root / "whole", []), resume_from_checkpoint=True))
    return found | {"alone": results(alone)}


def failing(root: Path) -> dict[str, Any]:
    """What goes wrong in one process alone."""

    def verification(index: int) -> Any:
        if index == 1:
            sys.modules["lightpeft.surgery.cut"].largest_difference = _differs
        run = trainer(root / "bert", root / "verification", **_TOGETHER)
        return _refusal(run) | {"cut": record_of(run.model) is not None}

    def lock(index: int) -> Any:
        run = trainer(root / "bert", root / "lock", **_TOGETHER)
        return _refusal(run)

    def compiled(index: int) -> Any:
        run = trainer(root / "bert", root / "compiled", torch_compile=True, **_TOGETHER)
        return _refusal(run)

    found = {"verification": results(forked(TOGETHER, verification))}
    with locked(root / "lock"):
        found["lock"] = results(forked(TOGETHER, lock))
    found["compiled"] = results(forked(TOGETHER, compiled))
    return found


_TOGETHER: dict[str, Any] = {"max_steps": 6, "average_tokens_across_devices": False}


def _differs(*_: Any) -> float:
    raise lightpeft.VerificationError("layer 0 differs.")


def _refusal(run: Any, **options: Any) -> dict[str, Any]:
    try:
        run.train(**options)
    except lightpeft.LightPeftError as error:
        return {"error": type(error).__name__, "text": str(error), "steps": run.state.global_step}
    return {"error": None, "steps": run.state.global_step}


def targeted(root: Path) -> list[Any]:
    """A target is measured by one process, and all have its plan."""

    def work(index: int) -> Any:
        light = dataclasses.replace(PAPER, target=Target(inference=0.8))
        run = trainer(root / "bert", root / "targeted", light, **_TOGETHER)
        run.train()
        assert run.light.plan is not None
        return {"plan": run.light.plan.to_dict(), "measured": run.light.measured}

    return results(forked(TOGETHER, work))


def sharded(root: Path) -> dict[str, Any]:
    """The example of two phases in one process, and in two that have parts of the parameters (FSDP2)."""
    base = save_word_bert(root / "words", **NO_DROPOUT)

    def work(index: int, count: int) -> Any:
        if count > 1:
            os.environ["TORCHELASTIC_RUN_ID"] = "tests"
        sys.argv = [str(EXAMPLE), str(base), str(root / f"phases-{count}")]
        names = runpy.run_path(str(EXAMPLE), run_name="__main__")
        model, plan = names["model"], lightpeft.Plan.from_json(_plan_of(root / f"phases-{count}" / "light"))
        return [
            _refused(lambda: lightpeft.cut(model, plan)),
            _refused(lambda: lightpeft.save(model, root / f"{index}")),
        ]

    return {
        str(count): results(forked(count, lambda index, count=count: work(index, count)))
        for count in (1, TOGETHER)
    }


def _plan_of(folder: Path) -> str:
    return json.dumps(json.loads((folder / "pruning.json").read_text())["plan"])


def _refused(action: Callable[[], Any]) -> str | None:
    try:
        action()
    except lightpeft.ConfigError as error:
        return str(error)
    except lightpeft.LightPeftError:  # of a whole model, which is cut already
        return None
    return None


def own_loops(root: Path) -> dict[str, Any]:
    """A loop of somebody's own around torch's DDP."""
    rows = Sentences()

    def work(index: int, count: int) -> Any:
        if count > 1:
            dist.init_process_group("gloo")
        processes, inner = Processes.of_group(), fresh_model(root / "bert")
        model = inner if processes.is_alone else DistributedDataParallel(inner)
        batches = [
            default_collate([rows[n] for n in range(step * 4 + index, step * 4 + 4, count)])
            for step in range(STEPS)
        ]
        optimizer = torch.optim.AdamW([p for p in inner.parameters() if p.requires_grad], lr=1e-2)
        scores = lightpeft.estimate(
            model, batches, lightpeft.EstimationConfig(steps=4), optimizer=optimizer, processes=processes
        )
        plan = lightpeft.make_plan(scores, lightpeft.find_anatomy(inner), lightpeft.Budget())
        lightpeft.cut(inner, plan, optimizer, scores=scores, batch=batches[3], processes=processes)
        if model is not inner:
            renew(model)
        model.train()
        for batch in batches[4:]:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        save_file(weights(inner), root / f"loop-{count}-{index}.safetensors")
        return plan.to_dict()["layers"]

    return {
        str(count): results(forked(count, lambda index, count=count: work(index, count)))
        for count in (1, TOGETHER)
    }


def commanded(root: Path) -> dict[str, Any]:
    """`lightpeft train` in one process and in two, and a verb that is of one; what each prints."""
    data = write_texts(root / "texts", sentences(64), sentences(9, seed=1))
    found: dict[str, Any] = {}
    for count in (1, TOGETHER):
        flags = {
            "model": root / "llama",
            "task": "texts",
            "objective": "causal-lm",
            "data": data,
            "text": "text",
            "out": root / f"command-{count}",
            "lora.dropout": 0.0,
            "training.batch_size": 8 // count,
            "training.max_steps": STEPS,
            "training.max_length": 16,
            "estimation.steps": 4,
            "training.packing": False,
        }
        words = ["train", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
        found[str(count)] = results(forked(count, lambda index, words=words: printed(words)))
    found["evaluate"] = results(forked(TOGETHER, lambda index: printed(["evaluate", "x"], joins=True)))
    return found


def printed(words: list[str], *, joins: bool = False) -> dict[str, Any]:
    """What the command line says to `words`, and its exit status."""
    if joins:
        dist.init_process_group("gloo")
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
        status = command(words)
    return {"status": status, "printed": out.getvalue(), "errors": errors.getvalue()}


def main(root: Path) -> dict[str, Any]:
    """All runs."""
    save_base("bert", root / "bert")
    save_base("bert", root / "dropping", dropout=0.1)
    save_language_model("llama", root / "llama")
    return {
        "compared": {name: compared(name, scenario, root) for name, scenario in SCENARIOS.items()},
        "killed": killed(root),
        "failing": failing(root),
        "targeted": targeted(root),
        "commanded": commanded(root),
        "sharded": sharded(root),
        "own loops": own_loops(root),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = sys.stdout
    sys.stdout = sys.stderr
    json.dump(main(Path(sys.argv[1])), out)
