"""The most memory that `load` and `load_merged` hold, against the model that they give.

python benchmarks/load_memory.py --out benchmarks/results/load-memory.json

A random LLaMA of 20 layers and about a billion parameters is cut to two thirds of its heads and neurons,
without any training, and saved. Each way of loading runs in a process of its own, whose most resident memory
(the kernel's VmHWM, mapped files included) counts, less what it held before. It takes 6 GB, also on the disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from plug_and_play import random_scores
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lightpeft
from lightpeft.adapters import find_modules
from lightpeft.bench import result_file, save_result
from lightpeft.report import environment

WAYS: dict[str, Callable[[Path], nn.Module]] = {
    "light": lambda folder: lightpeft.load(folder / "light"),
    "merged": lambda folder: lightpeft.load_merged(folder / "merged"),
    "uncut, by transformers": lambda folder: AutoModelForCausalLM.from_pretrained(folder / "base"),
}
BUDGET = lightpeft.Budget(heads=1 / 3, neurons=1 / 3, modules=0.25, ranks=0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1792)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=result_file)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, folder = options.measure
        print(json.dumps(measured(WAYS[way], Path(folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        parameters = make(Path(folder), options.width, options.layers, options.dtype)
        ways = {way: in_own_process(way, folder) for way in WAYS}
    result = {"parameters": parameters, "layers": options.layers, "dtype": options.dtype, "ways": ways}
    print(json.dumps(result, indent=2))
    if options.out is not None:
        save_result(options.out, result | {"environment": environment()})


def make(folder: Path, width: int, layers: int, dtype: str) -> int:
    """A base, a light checkpoint of it, and that merged; the parameters of the base."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        vocab_size=32000,
        dtype=dtype,
    )
    torch.manual_seed(0)
    with torch.device("cpu"):
        base = LlamaForCausalLM._from_config(config)
    base.save_pretrained(folder / "base", max_shard_size="1GB")
    del base
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    parameters = base.num_parameters()
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    scores = random_scores(model, torch.Generator().manual_seed(0))
    lightpeft.cut(model, lightpeft.make_plan(scores, lightpeft.find_anatomy(model), BUDGET))
    lightpeft.save(model, folder / "light")
    lightpeft.export_merged(folder / "light", folder / "merged")
    return int(parameters)


def in_own_process(way: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", way, folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(load: Callable[[Path], nn.Module], folder: Path) -> dict[str, float]:
    """Bytes that the model holds, the most that the process held beyond what it did before, and the ratio."""
    find_modules(get_peft_model(tiny(), LoraConfig(target_modules="all-linear")))  # imports what is needed
    before = resident("VmRSS")
    with Path("/proc/self/clear_refs").open("w", encoding="ascii") as counters:
        counters.write("5")  # the most from here on
    model = load(folder)
    most = resident("VmHWM") - before
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    size = sum(tensor.nbytes for tensor in tensors.values())
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    run = resident("VmHWM") - before
    return {"model": size, "peak": most, "ratio": most / size, "peak_with_a_forward_pass": run}


def tiny() -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, num_attention_heads=1, **sizes))


def resident(key: str) -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
