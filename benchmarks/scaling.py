"""Tokens per second and bytes sent per step of one, two and four processes, before the cut and after it.

python benchmarks/scaling.py --processes 1,2,4 --out benchmarks/results/scaling.json

Every process has its own examples (the batch grows with their number). The uncut and the cut model take turns
step by step in the same processes; the bytes are those that torch's DistributedDataParallel hands to its
all-reduce, and of a step of estimation those of the gates' gradients beside them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSequenceClassification

from lightpeft import Budget, EstimationConfig, cut, find_anatomy, make_plan
from lightpeft.bench import result_file, save_result
from lightpeft.estimation import Estimator
from lightpeft.files import read_json, write_json
from lightpeft.processes import Processes
from lightpeft.report import environment
from lightpeft.runs import MINILM, resolve_model
from lightpeft.training import renew

ROWS, TOKENS = 8, 64
"""Of each process."""
BUDGET = Budget(align_neurons=32, frozen_layers="auto")
ESTIMATION = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=result_file, required=True)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    measured = {}
    for count in (int(one) for one in options.processes.split(",")):
        measured[str(count)] = launched(count, options.rounds)
        print(f"{count} processes: {measured[str(count)]}")
    save_result(
        options.out,
        {
            "batch": {"rows": ROWS, "tokens": TOKENS},
            "rounds": options.rounds,
            "cores": os.cpu_count(),
            "processes": measured,
            "environment": environment(),
        },
    )


def launched(count: int, rounds: int) -> dict[str, Any]:
    """What the first of so many processes measured."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "measured.json"
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        own = [__file__, "--worker", str(told), str(rounds)]
        subprocess.run([sys.executable, *words, *own], check=True)
        return read_json(told)


class Sent:
    """A DDP that counts what it hands to its all-reduce."""

    def __init__(self, model: PeftModel) -> None:
        self.bytes = 0
        self.ddp = DistributedDataParallel(model)
        self._count()

    def _count(self) -> None:
        self.ddp.register_comm_hook(None, self._reduce)

    def _reduce(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        del state
        self.bytes += bucket.buffer().nbytes
        reduced = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
        return reduced.get_future().then(lambda done: done.value()[0])

    def renew(self) -> None:
        """After the cut."""
        renew(self.ddp)
        self._count()

    def step(self, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> tuple[float, int]:
        """Seconds and bytes."""
        self.bytes, start = 0, time.perf_counter()
        self.ddp(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start, self.bytes


def worker(told: Path, rounds: int) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    processes = Processes.of_group()
    batch = own_batch(processes.index)
    plain, light = Sent(model()), Sent(model())
    optimizers = [torch.optim.AdamW(trained(one), lr=1e-4) for one in (plain, light)]
    sent_by_gates = estimated_and_cut(light, optimizers[1], batch, processes)
    seconds: dict[str, list[float]] = {"plain": [], "light": []}
    sent: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, one, optimizer in zip(seconds, (plain, light), optimizers, strict=True):
            processes.wait()
            took, sent[name] = one.step(batch, optimizer)
            if number:  # the first ones warm up
                seconds[name].append(took)
    if processes.is_first:
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        tokens = ROWS * TOKENS * processes.count
        write_json(
            told,
            {
                "step_seconds": medians,
                "tokens_per_second": {name: tokens / value for name, value in medians.items()},
                "bytes_reduced_per_step": sent | {"gates_while_estimating": sent_by_gates},
                "time_ratio": medians["light"] / medians["plain"],
            },
        )
    dist.barrier()
    dist.destroy_process_group()


def estimated_and_cut(
    sent: Sent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], processes: Processes
) -> int:
    """Bytes that the gates' gradients are, in a step of estimation."""
    inner = sent.ddp.module
    estimator = Estimator(inner, EstimationConfig(steps=ESTIMATION), processes=processes)
    estimator.attach()
    for _ in range(ESTIMATION):
        sent.ddp(**batch).loss.backward()
        estimator.end_step(1e-4)
        optimizer.step()
        optimizer.zero_grad()
    scores = processes.shared(estimator.scores())
    estimator.detach()
    plan = processes.decided(lambda: make_plan(scores, find_anatomy(inner), BUDGET))
    cut(inner, plan, optimizer, scores=scores, batch=batch, processes=processes)
    sent.renew()
    gates = sum(len(one) for one in (*scores.heads, *scores.neurons, *scores.ranks.values()))
    return gates * torch.float32.itemsize


def model() -> PeftModel:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(resolve_model(MINILM))
    targets = r".*layer\.\d+\..*(query|key|value|dense)"
    made = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=targets))
    assert isinstance(made, PeftModel)
    return made.train()


def trained(sent: Sent) -> list[Tensor]:
    return [parameter for parameter in sent.ddp.parameters() if parameter.requires_grad]


def own_batch(index: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(1000, 8000, (ROWS, TOKENS), generator=generator)
    labels = torch.arange(ROWS) % 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
