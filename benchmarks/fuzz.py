"""Damages light checkpoints at random: each must be refused, or give the same logits to the last bit.

python benchmarks/fuzz.py --mutations 10000 --out benchmarks/results/fuzz.json
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, logging

import lightpeft
from lightpeft import BottleneckConfig, Budget, EstimationConfig, LightPeftError
from lightpeft.bench import result_file, save_result
from lightpeft.files import file_sha256
from lightpeft.report import environment

PRUNING = "pruning.json"
SECONDS, BYTES = 30, 2**31
"""What one load may take at most, over what the process holds already."""

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
BATCH = {"input_ids": torch.arange(5, 25).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}


@dataclass(frozen=True)
class Target:
    """A whole checkpoint, another one whose files get mixed in, and what the whole one computes."""

    name: str
    folder: Path
    other: Path
    load: Callable[[Path], nn.Module]
    logits: Tensor


@dataclass
class Damage:
    """One change to a copy of a checkpoint."""

    kind: str
    file: str
    resigned: bool
    """Whether the digests in pruning.json were made anew, as somebody would who edits on purpose: then other
    logits are no fault, and only how `load` ends counts."""


@dataclass
class Findings:
    """How often loads ended in which way, and what ended badly."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    bad: list[dict[str, Any]] = field(default_factory=list)

    def add(self, number: int, target: Target, damage: Damage, outcome: str, detail: str) -> None:
        """Count one load."""
        kind = f"{damage.kind}, resigned" if damage.resigned else damage.kind
        self.outcomes.setdefault(kind, Counter())[outcome] += 1
        if outcome not in ("refused", "same") and not (damage.resigned and outcome == "different"):
            told = {"number": number, "checkpoint": target.name, "damage": kind, "file": damage.file}
            self.bad.append(told | {"outcome": outcome, "detail": detail})

    def total(self) -> dict[str, int]:
        """Counts over all kinds; those of resigned damage apart."""
        counts: Counter[str] = Counter()
        for kind, found in self.outcomes.items():
            for outcome, count in found.items():
                counts[f"{outcome}, resigned" if kind.endswith("resigned") else outcome] += count
        return dict(sorted(counts.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first mutation, to repeat one")
    parser.add_argument("--out", type=result_file)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as work:
        numbers = range(options.start, options.start + options.mutations)
        findings = fuzz(make_targets(Path(work)), numbers, options.seed, Path(work) / "damaged")
    result = {
        "command": f"python benchmarks/fuzz.py --mutations {options.mutations} --seed {options.seed}",
        "mutations": options.mutations,
        "seed": options.seed,
        "total": findings.total(),
        "outcomes": {kind: dict(sorted(found.items())) for kind, found in sorted(findings.outcomes.items())},
        "bad": findings.bad,
        "environment": environment(),
    }
    if options.out is not None:
        save_result(options.out, result)
    print(json.dumps({key: result[key] for key in ("total", "bad")}, indent=2, ensure_ascii=False))
    return 1 if findings.bad else 0


def make_targets(work: Path) -> list[Target]:
    """Two light checkpoints and a merged one of one tiny base, each beside another of its kind."""
    base = work / "base"
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", **SIZES))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    encoder.save_pretrained(base)
    targets = []
    for name, config in PEFT.items():
        models = [cut_model(base, config, seed) for seed in (1, 2)]
        folders = [work / f"{name}-{seed}" for seed in (1, 2)]
        for model, folder in zip(models, folders, strict=True):
            lightpeft.save(model, folder, metrics={"accuracy": 0.5})
        targets.append(target(name, folders, lightpeft.load))
        if name == "lora":
            merged = [work / f"merged-{seed}" for seed in (1, 2)]
            for light, folder in zip(folders, merged, strict=True):
                lightpeft.export_merged(light, folder)
            targets.append(target("merged", merged, lightpeft.load_merged))
    return targets


PEFT: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(
        r=4, lora_alpha=6, target_modules=["query", "value", "output.dense"], task_type="SEQ_CLS"
    ),
    "bottleneck": lambda: BottleneckConfig(form="parallel", size=4, task_type="SEQ_CLS"),
}


def cut_model(base: Path, config: Callable[[], Any], seed: int) -> Any:
    """A model with random, living PEFT modules, estimated and cut on random batches."""
    torch.manual_seed(seed)
    model: Any = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    batches = [{"input_ids": torch.randint(5, 40, (4, 8)), "labels": torch.arange(4) % 2} for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a plan of three steps rests on little
        scores = lightpeft.estimate(model, batches, EstimationConfig(steps=3))
        plan = lightpeft.make_plan(scores, lightpeft.find_anatomy(model), Budget())
        lightpeft.cut(model, plan, scores=scores, batch=batches[0])
    return model


def target(name: str, folders: list[Path], load: Callable[[Path], nn.Module]) -> Target:
    """The first of two checkpoints, with its logits."""
    return Target(name, folders[0], folders[1], load, logits_of(load(folders[0])))


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    """What the model computes on the batch."""
    found: Tensor = model.eval()(**BATCH).logits
    return found


def fuzz(targets: list[Target], numbers: range, seed: int, damaged: Path) -> Findings:
    """Damage a copy at `damaged` for every number, load it, and note how that ended."""
    findings = Findings()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with little_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in numbers:
            chance = random.Random(f"{seed} {number}")
            one = targets[number % len(targets)]
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(one.folder, damaged)
            damage = spoil(damaged, one.other, chance)
            findings.add(number, one, damage, *ending(one, damaged))
    return findings


def ending(one: Target, damaged: Path) -> tuple[str, str]:
    """How loading ends: refused, same, different, traceback, allocation or hang; and what was said."""
    try:
        with little_time():
            found = logits_of(one.load(damaged))
    except LightPeftError as error:
        return ("allocation" if ran_out(error) else "refused"), str(error)
    except TimeoutError as error:
        return "hang", str(error)
    except Exception as error:
        return ("allocation" if ran_out(error) else "traceback"), f"{type(error).__name__}: {error}"
    return ("same" if torch.equal(found, one.logits) else "different"), ""


def ran_out(error: BaseException | None) -> bool:
    """Whether memory ended, here or in what led here."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def little_memory() -> Iterator[None]:
    """Only so many bytes more than the process holds now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else None
    if pages is not None:
        limit = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def little_time() -> Iterator[None]:
    """Only so many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def spoil(folder: Path, other: Path, chance: random.Random) -> Damage:
    """Damage one file of `folder`."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    kind = chance.choice(list(DAMAGES))
    fit = [name for name in names if name.endswith(ENDINGS.get(kind, ""))]
    name = chance.choice(fit)
    DAMAGES[kind](folder / name, other / name, chance)
    resigned = name != PRUNING and chance.random() < 0.3 and resign(folder, name)
    return Damage(kind, name, resigned)


def resign(folder: Path, name: str) -> bool:
    """Write the new digest of `name` into pruning.json; False if there is none to write."""
    value = json.loads((folder / PRUNING).read_text())
    if name not in value["files"] or not (folder / name).is_file():
        return False
    value["files"][name] = file_sha256(folder / name)
    (folder / PRUNING).write_text(json.dumps(value))
    return True


def flip(file: Path, _other: Path, chance: random.Random) -> None:
    """One to three bytes become others."""
    content = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 3)):
        content[chance.randrange(len(content))] ^= chance.randint(1, 255)
    file.write_bytes(content)


def truncate(file: Path, _other: Path, chance: random.Random) -> None:
    """The end is missing, or everything."""
    content = file.read_bytes()
    file.write_bytes(content[: chance.choice([0, chance.randrange(len(content)), len(content) - 1])])


def append(file: Path, _other: Path, chance: random.Random) -> None:
    """Something more at the end."""
    file.write_bytes(file.read_bytes() + chance.choice([b"\0" * 8, b"}", b" ", chance.randbytes(20)]))


def repeat(file: Path, _other: Path, chance: random.Random) -> None:
    """A piece is there twice, or takes the place of the next one."""
    content = file.read_bytes()
    start, size = chance.randrange(len(content)), chance.randint(1, 64)
    piece = content[start : start + size]
    rest = content[start + size * chance.randint(1, 2) :]
    file.write_bytes(content[: start + size] + piece + rest)


def remove(file: Path, _other: Path, chance: random.Random) -> None:
    """The file is gone, or a folder has its name."""
    file.unlink()
    if chance.random() < 0.3:
        file.mkdir()


def swap(file: Path, other: Path, _chance: random.Random) -> None:
    """The file of another checkpoint."""
    shutil.copy(other, file)


def spoil_json(change: Callable[[dict[str, Any], str, random.Random], None]) -> Any:
    """A change to some object in a JSON file."""

    def damage(file: Path, _other: Path, chance: random.Random) -> None:
        value = json.loads(file.read_text())
        holder = chance.choice([one for one in objects(value) if one])
        change(holder, chance.choice(list(holder)), chance)
        file.write_text(json.dumps(value, indent=2))

    return damage


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in a value."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(one)


def delete_key(holder: dict[str, Any], key: str, _chance: random.Random) -> None:
    del holder[key]


def rename_key(holder: dict[str, Any], key: str, chance: random.Random) -> None:
    holder[key + chance.choice(["_", " ", "s"])] = holder.pop(key)


def swap_values(holder: dict[str, Any], key: str, chance: random.Random) -> None:
    other = chance.choice(list(holder))
    holder[key], holder[other] = holder[other], holder[key]


def change_value(holder: dict[str, Any], key: str, chance: random.Random) -> None:
    """Numbers grow, shrink or explode; words and lists become others."""
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, int | float):
        holder[key] = chance.choice([value + 1, value - 1, -value, 0, value * 2, 10**9, 1e308, 2**70, 0.5])
    elif isinstance(value, str):
        holder[key] = chance.choice([value + "x", value[1:], "", value.upper(), "../" + value, "\ud800"])
    elif isinstance(value, list) and value:
        holder[key] = chance.choice([value[1:], value + value[:1], value[::-1], [value], value * 2])
    else:
        change_type(holder, key, chance)


def change_type(holder: dict[str, Any], key: str, chance: random.Random) -> None:
    nested: Any = []
    for _ in range(chance.choice([2, 900])):
        nested = [nested]
    holder[key] = chance.choice([None, [], {}, "none", 3, -1, True, float("nan"), nested, {"a": {}}])


def add_key(holder: dict[str, Any], _key: str, chance: random.Random) -> None:
    holder[chance.choice(["extra", "", "0", "r", "scaling", "use_rslora", "dtype"])] = chance.choice(
        [1, None, "x"]
    )


def duplicate_key(file: Path, _other: Path, chance: random.Random) -> None:
    """A key of the outermost object is there twice, the second time with another value."""
    value = json.loads(file.read_text())
    key, donor = chance.choice(list(value)), chance.choice(list(value))
    text = file.read_text().rstrip().removesuffix("}").rstrip()
    file.write_text(f"{text},\n  {json.dumps(key)}: {json.dumps(value[donor])}\n}}\n")


def spoil_header(file: Path, _other: Path, chance: random.Random) -> None:
    """The header of a safetensors file says something else; the tensors stay."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change = chance.choice([delete_key, rename_key, swap_values, change_value, change_type, add_key])
    holder = chance.choice([one for one in objects(header) if one])
    change(holder, chance.choice(list(holder)), chance)
    new = json.dumps(header).encode("utf-8", "surrogatepass")
    said = chance.choice([len(new)] * 6 + [0, size + 1, 2**40, 2**63])
    file.write_bytes(struct.pack("<Q", said) + new + content[8 + size :])


def zero(file: Path, _other: Path, chance: random.Random) -> None:
    """A stretch of zeros, as a disk leaves it that was not told to write."""
    content = bytearray(file.read_bytes())
    start = chance.randrange(len(content))
    stop = min(len(content), start + chance.choice([1, 16, 512]))
    content[start:stop] = bytes(stop - start)
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "bytes flipped": flip,
    "cut off": truncate,
    "something appended": append,
    "a piece repeated": repeat,
    "a piece zeroed": zero,
    "file removed": remove,
    "file of another checkpoint": swap,
    "key deleted": spoil_json(delete_key),
    "key renamed": spoil_json(rename_key),
    "values swapped": spoil_json(swap_values),
    "value changed": spoil_json(change_value),
    "type changed": spoil_json(change_type),
    "key added": spoil_json(add_key),
    "key duplicated": duplicate_key,
    "header changed": spoil_header,
}
ENDINGS = {
    **dict.fromkeys(
        (
            "key deleted",
            "key renamed",
            "values swapped",
            "value changed",
            "type changed",
            "key added",
            "key duplicated",
        ),
        ".json",
    ),
    "header changed": ".safetensors",
}

if __name__ == "__main__":
    sys.exit(main())
