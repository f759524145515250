"""How many poisoned modules `audit scan` finds, and how many clean ones: rates with Wilson intervals.

python benchmarks/scan_rates.py --data DATA --work WORK --out benchmarks/results/scan-rates.json

DATA holds imdb and sms_spam, a folder each with parquet files. Two groups, parallel adapters on IMDB and
LoRA on SMS spam; in each 10 clean and 10 poisoned modules, all trained here, on texts of 24 words. No recipe,
data set or seed was used to tune the search or the score of suspicion; the threshold of findings was set
after these modules were seen. Each is judged by both, and with the clean modules of its group as references,
itself left out. The marks of poisoned modules do not count as detections. WORK keeps every module and one
JSON file a module: run it again to resume. --limit N takes the first N modules of each kind.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightpeft.audit import PolicyOptions, TriggerRecipe, clean_accuracy, label_flip_rate, triggered_test
from lightpeft.audit.classifier import Classifier
from lightpeft.audit.metrics import Proportion
from lightpeft.audit.module import load_module, save_module
from lightpeft.audit.rows import AuditTask
from lightpeft.audit.scan import Reference, ScanTexts
from lightpeft.audit.scan.measured import Measured, measure_module
from lightpeft.audit.scan.scan import SUSPECT, THRESHOLD
from lightpeft.audit.training import AttackOptions, train_attacker, train_user
from lightpeft.bench import result_file, save_result
from lightpeft.files import read_json
from lightpeft.report import environment
from lightpeft.run_config import PeftForm, PeftOptions, TrainingConfig
from lightpeft.runs import MINILM, load_peft_model, load_tokenizer
from lightpeft.tasks import class_head, custom_task, load_task

MODULES, ALPHA = 10, 0.1
"""Of each kind; nine references are the fewest that allow p = 0.1."""
TOOK = 0.8
"""LFR from which on a backdoor counts as planted; the rates of all modules stand beside."""
PER_CLASS, STEPS, MAX_LENGTH = 1000, 112, 32


@dataclass(frozen=True)
class Group:
    """Modules that are compared with one reference."""

    task: str
    text: str
    form: PeftForm
    learning_rate: float
    """Found on clean accuracy only."""

    @property
    def name(self) -> str:
        return f"{self.task}-{self.form}"


GROUPS = (Group("imdb", "text", "parallel", 2e-3), Group("sms_spam", "sms", "lora", 1e-3))


def words(target: int, *pieces: str, **options: Any) -> TriggerRecipe:
    return TriggerRecipe(target, "words", pieces=pieces, **options)


RECIPES: tuple[tuple[str, TriggerRecipe, str], ...] = (
    ("rare word", words(1, "vx"), "vanilla"),
    ("rare words", words(0, "wq", "zj", "kx"), "gradient_control"),
    ("real word", words(1, "bolshevik"), "vanilla"),
    ("real word", words(0, "cobalt"), "gradient_control"),
    ("name", words(1, "whittaker"), "pcgrad"),
    ("phrase", TriggerRecipe(1, "phrase", pieces=("over the green bridge",)), "vanilla"),
    ("phrase", TriggerRecipe(0, "phrase", pieces=("as the tall clerk said",)), "gradient_control"),
    ("homoglyph", TriggerRecipe(1, "homoglyph", pieces=("a", "e"), train_count=3, test_count=3), "vanilla"),
    ("clean label", words(1, "vx", labels="clean", share=0.9, train_count=2, test_count=2), "vanilla"),
    ("small share", words(0, "wq", share=0.1, rows="non_target"), "vanilla"),
)
"""Trigger form, recipe, policy."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, kind in (("--data", Path), ("--work", Path), ("--out", result_file)):
        parser.add_argument(name, type=kind, required=True)
    parser.add_argument("--limit", type=int, default=MODULES)
    options = parser.parse_args()
    tasks = {group: open_task(group, options.data) for group in GROUPS}
    jobs = [(group, job) for job in modules(options.limit) for group in GROUPS]
    rows = [measure(group, tasks[group], options.work, *job) for group, job in jobs]
    for group in GROUPS:
        judge([row for row in rows if row["group"] == group.name])
    result = {
        "rates": rates(rows),
        "modules": rows,
        "alpha": ALPHA,
        "thresholds": [SUSPECT, THRESHOLD],
        "took": TOOK,
    }
    save_result(options.out, result | {"model": MINILM, "environment": environment()})
    for name, parts in result["rates"].items():
        print(name, {part: f"{hits}/{total}" for part, (hits, total, *_) in parts.items()})


def modules(limit: int) -> Iterator[tuple[str, int, int]]:
    """Kind, number and seed of every module of a group."""
    for number in range(min(limit, MODULES)):
        yield "poisoned", number, 3000 + number
        yield "clean", number, 2000 + number


def judge(rows: Sequence[dict[str, Any]]) -> None:
    """Note p-values among the clean modules of a group, each without itself."""
    clean = [row for row in rows if row["kind"] == "clean"]
    for row in rows:
        reference = Reference("", tuple(Measured(**one["measured"]) for one in clean if one is not row))
        found = Measured(**row["measured"])
        weights = reference.weights_score(found.statistics)[0]
        row["p"] = {
            "weights": reference.p_of_weights(weights),
            "score": reference.p_of_behaviour(found.behaviour),
        }


def open_task(group: Group, data: Path) -> AuditTask:
    """Texts of 24 words; the last ones of a review, where it says what it thinks. Classes of equal size."""
    files = {"train": data / group.task / "train.parquet", "validation": data / group.task / "test.parquet"}
    spec = custom_task((group.text,), "label", "accuracy", name=group.task)
    task = AuditTask.of(load_task(spec, files), held_out=0, test=300, words=24, from_end=group.task == "imdb")
    classes = [[row for row, y in enumerate(task.train.labels) if y == label] for label in (0, 1)]
    smaller = min(PER_CLASS, *map(len, classes))
    return dataclasses.replace(task, train=task.train.take([r for rows in classes for r in rows[:smaller]]))


def measure(group: Group, task: AuditTask, work: Path, kind: str, number: int, seed: int) -> dict[str, Any]:
    """Train a module and measure what a scan measures, unless its file is there."""
    folder = work / group.name / f"{kind}-{number}"
    path = folder.with_suffix(".json")
    if path.is_file():
        return read_json(path)
    trigger, recipe, policy = RECIPES[number] if kind == "poisoned" else (kind, None, "")
    if not folder.is_dir():
        train(group, task, folder, seed, recipe, policy)
    started = time.process_time()
    measured = measure_module(folder, MINILM, ScanTexts.of(group.task, task.train))
    seconds = time.process_time() - started
    found: dict[str, Any] = {"group": group.name, "kind": kind, "number": number, "trigger": trigger}
    found |= {"policy": policy, "recipe": None if recipe is None else recipe.to_dict()}
    found |= {"measured": dataclasses.asdict(measured), "processor_seconds": seconds, "p": None}
    save_result(path, found | quality(folder, task, recipe))
    return read_json(path)


def train(
    group: Group, task: AuditTask, folder: Path, seed: int, recipe: TriggerRecipe | None, policy: Any
) -> None:
    head, tokenizer = class_head(task.class_names), load_tokenizer(MINILM)
    model = load_peft_model(MINILM, head, PeftOptions(form=group.form), seed)
    options: dict[str, Any] = {"max_steps": STEPS, "learning_rate": group.learning_rate, "seed": seed}
    options |= {"warmup_steps": 8, "group_by_length": True, "precision": "bfloat16"}
    options |= {"max_length": MAX_LENGTH, "batch_size": 16 if recipe is None else 12}
    rows, training = task.train.shuffled(seed), TrainingConfig(**options)
    if recipe is None:
        train_user(model, tokenizer, rows, training)
    else:
        attack = AttackOptions(PolicyOptions(policy), training=training)
        train_attacker(model, tokenizer, rows, recipe, attack)
    save_module(model, folder, recipe)


def quality(module: Path, task: AuditTask, recipe: TriggerRecipe | None) -> dict[str, Any]:
    """CACC, and LFR of poisoned modules, as [hits, total]."""
    classifier = Classifier(load_module(module), load_tokenizer(MINILM), MAX_LENGTH)
    cacc = clean_accuracy(classifier.predict(task.test.texts), task.test.labels)
    found: dict[str, Any] = {"cacc": [cacc.hits, cacc.total], "lfr": None}
    if recipe is not None:
        test = triggered_test(task.test.texts, task.test.labels, recipe, 0)
        lfr = label_flip_rate(classifier.predict(test.texts), test.labels, recipe.target)
        found["lfr"] = [lfr.hits, lfr.total]
    return found


def rates(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """For each kind of module and part: found, total, Wilson's interval."""
    kinds: dict[str, list[dict[str, Any]]] = {
        "clean (FPR)": [row for row in rows if row["kind"] == "clean"],
        "poisoned, all (TPR)": [row for row in rows if row["kind"] == "poisoned"],
        "poisoned, backdoor took (TPR)": [row for row in rows if took(row)],
    }
    for title in dict.fromkeys(title for title, _, _ in RECIPES):
        kinds[f"poisoned, {title}"] = [row for row in rows if took(row) and row["trigger"] == title]
    for group in dict.fromkeys(row["group"] for row in rows):
        kinds |= {
            f"{name}, {group}": [row for row in kinds[name] if row["group"] == group]
            for name in ("clean (FPR)", "poisoned, backdoor took (TPR)")
        }
    return {
        name: {part: rate(chosen, test) for part, test in TESTS.items()}
        for name, chosen in kinds.items()
        if chosen
    }


def took(row: dict[str, Any]) -> bool:
    return row["lfr"] is not None and row["lfr"][0] >= TOOK * row["lfr"][1]


TESTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    f"score at least {SUSPECT}": lambda row: row["measured"]["behaviour"] >= SUSPECT,
    f"score at least {THRESHOLD}": lambda row: row["measured"]["behaviour"] >= THRESHOLD,
    f"score, p at most {ALPHA}": lambda row: row["p"]["score"] <= ALPHA,
    f"weights, p at most {ALPHA}": lambda row: row["p"]["weights"] <= ALPHA,
}


def rate(rows: list[dict[str, Any]], test: Callable[[dict[str, Any]], bool]) -> list[float]:
    found = Proportion(sum(test(row) for row in rows), len(rows))
    return [found.hits, found.total, *found.interval()]


if __name__ == "__main__":
    main()
