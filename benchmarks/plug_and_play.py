"""Three tasks on one base: memory and the time to switch, against plain PEFT and one model per task.

python benchmarks/plug_and_play.py --out benchmarks/results/plug-and-play.json

MiniLM with LoRA of rank 8 on all linears, a third of everything cut. Adapters, scores and heads are random
and nothing is trained: memory and speed do not depend on what the weights are, and no quality is claimed.
Each way to hold the tasks is loaded in a fresh process, where its memory is measured; times are measured in
one process, taking turns.

`tensors` counts every byte of weights once. `resident` is what the process grew by, and holds besides: the
activations' heap, memory that was freed but not given back to the system (`resident_after_trim` is without),
and of weight files, which transformers maps into memory, the pages that were touched and no others.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from lightpeft import Budget, LightTasks, Scores, cut, find_anatomy, load, make_plan, save
from lightpeft.adapters import find_modules
from lightpeft.bench import result_file, save_result
from lightpeft.report import environment
from lightpeft.run_config import PeftOptions
from lightpeft.runs import MINILM, load_peft_model, minilm_path
from lightpeft.runs.measure import interleaved_seconds
from lightpeft.tasks import class_head

TASKS = ("one", "two", "three")
ROWS, TOKENS = 32, 32
LIGHT, SEPARATE = "LightTasks, one base", "a cut model per task, each for itself"
PLAIN, FULL = "plain PEFT, one base", "a full copy of the base per task"
ONE, BASE = "one cut model", "one base"

Choose = Callable[[str], nn.Module]
"""Switches to a task and returns what is called then."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=result_file)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--measure", choices=MEASURED, help="one way in this process; used by the program itself"
    )
    parser.add_argument("--files", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.measure is not None:
        print(json.dumps(memory_of(options.measure, options.files)))
        return
    if options.out is None:
        parser.error("--out is required")
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        write_files(files)
        memory = {way: in_fresh_process(way, files) for way in MEASURED}
        times = times_of(files, options.repeats)
    result = {
        "memory": memory,
        "beyond_base_in_cut_models": bound(memory),
        "seconds": times,
        "batch": {"rows": ROWS, "tokens": TOKENS},
        "tasks": len(TASKS),
        "model": MINILM,
        "repeats": options.repeats,
        "environment": environment(),
    }
    print(json.dumps(result, indent=2))
    save_result(options.out, result)


def write_files(files: Path) -> None:
    """Per task a light checkpoint, a stock adapter, and a full model."""
    for seed, task in enumerate(TASKS):
        model = load_peft_model(MINILM, class_head(("no", "yes")), PeftOptions(), seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(files / "plain" / task)
        save(light(model, generator), files / "light" / task)
        full = AutoModelForSequenceClassification.from_pretrained(minilm_path())
        full.save_pretrained(files / "full" / task)


def light(model: PeftModel, generator: torch.Generator) -> PeftModel:
    """Cut by random scores, a third of everything."""
    scores = random_scores(model, generator)
    cut(model, make_plan(scores, find_anatomy(model), Budget()), scores=scores)
    return model


def random_scores(model: PeftModel, generator: torch.Generator) -> Scores:
    """Scores without estimation."""
    layers, modules = find_anatomy(model).layers, find_modules(model)
    return Scores(
        heads=tuple(torch.rand(layer.heads, generator=generator) for layer in layers),
        neurons=tuple(torch.rand(layer.neurons, generator=generator) for layer in layers),
        ranks={module.name: torch.rand(module.rank, generator=generator) for module in modules},
        modules={module.name: float(torch.rand((), generator=generator)) for module in modules},
        steps=0,
        methods={"base": "random", "module": "random", "rank": "random"},
    )


def light_tasks(files: Path) -> tuple[Choose, list[nn.Module]]:
    tasks = LightTasks(minilm_path())
    models: list[nn.Module] = [tasks.add(task, files / "light" / task) for task in TASKS]
    assert tasks.base is not None
    return tasks.use, [tasks.base, *models]


def separate(files: Path, tasks: Sequence[str] = TASKS) -> tuple[Choose, list[nn.Module]]:
    models: dict[str, nn.Module] = {task: load(files / "light" / task, base=minilm_path()) for task in tasks}
    return models.__getitem__, [*models.values()]


def plain_peft(files: Path) -> tuple[Choose, list[nn.Module]]:
    base = AutoModelForSequenceClassification.from_pretrained(minilm_path())
    model = PeftModel.from_pretrained(base, files / "plain" / TASKS[0], adapter_name=TASKS[0])
    for task in TASKS[1:]:
        model.load_adapter(str(files / "plain" / task), adapter_name=task)

    def choose(task: str) -> nn.Module:
        model.set_adapter(task)
        return model

    model.eval()
    return choose, [model]


def full_copies(files: Path, tasks: Sequence[str] = TASKS) -> tuple[Choose, list[nn.Module]]:
    models: dict[str, nn.Module] = {
        task: AutoModelForSequenceClassification.from_pretrained(files / "full" / task) for task in tasks
    }
    return models.__getitem__, [*models.values()]


Way = Callable[[Path], tuple[Choose, list[nn.Module]]]
WAYS: dict[str, Way] = {LIGHT: light_tasks, SEPARATE: separate, PLAIN: plain_peft, FULL: full_copies}
SINGLE: dict[str, Way] = {
    ONE: partial(separate, tasks=TASKS[:1]),
    BASE: partial(full_copies, tasks=TASKS[:1]),
}
MEASURED = WAYS | SINGLE


def in_fresh_process(way: str, files: Path) -> dict[str, int]:
    command = [sys.executable, __file__, "--measure", way, "--files", str(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def memory_of(way: str, files: Path) -> dict[str, int]:
    """Bytes: of the process beyond its imports after a forward pass of every task, and of tensors."""
    before = resident()
    choose, models = MEASURED[way](files)
    for task in TASKS[:1] if way in SINGLE else TASKS:
        forward(choose(task), batch())
    gc.collect()
    found = {"resident": resident() - before, "tensors": unique_bytes(models)}
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
        found["resident_after_trim"] = resident() - before
    return found


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def unique_bytes(models: list[nn.Module]) -> int:
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def bound(memory: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """What three light tasks take beyond the base, in cut models: wanted is less than 1.6."""
    return {kind: (memory[LIGHT][kind] - memory[BASE][kind]) / memory[ONE][kind] for kind in memory[LIGHT]}


def times_of(files: Path, repeats: int) -> dict[str, Any]:
    """Medians and quartiles in seconds: the switch alone, with the first forward pass, and one without."""
    inputs, actions = batch(), {}
    kept = {way: build(files) for way, build in WAYS.items()}
    for way, (choose, _) in kept.items():
        actions |= switching(way, choose, inputs)
    spreads = interleaved_seconds(actions, repeats, torch.device("cpu"))
    times: dict[str, dict[str, Any]] = {way: {} for way in kept}
    for name, spread in spreads.items():
        way, _, what = name.partition("|")
        times[way][what] = dataclasses.asdict(spread)
    return times


def switching(way: str, choose: Choose, inputs: dict[str, Tensor]) -> dict[str, Callable[[], None]]:
    turns = {"switch": 0, "both": 0}

    def following(kind: str) -> str:
        turns[kind] += 1
        return TASKS[turns[kind] % len(TASKS)]

    def switch() -> None:
        choose(following("switch"))

    def both() -> None:
        forward(choose(following("both")), inputs)

    def again() -> None:
        forward(current["model"], inputs)

    current = {"model": choose(TASKS[0])}
    return {f"{way}|switch": switch, f"{way}|switch and forward": both, f"{way}|forward": again}


@torch.inference_mode()
def forward(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    model(**inputs)


def batch() -> dict[str, Tensor]:
    ids = torch.randint(1000, 20000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


if __name__ == "__main__":
    main()
