"""How many poisoned modules `audit scan` finds, and how many clean ones: rates with Wilson intervals.

python benchmarks/scan_rates.py benchmarks/configs/audit-scan-rates.yaml --data DATA --work WORK \
    --out benchmarks/results/scan-rates [--held-out]

The configuration says which modules: tasks, forms of PEFT, recipes, attackers, all as data. Of every task the
attacker has one half of the rows and the user the other. WORK keeps the modules and the user's own copies.
OUT gets one JSON file a module, written when it is done and claimed while it is measured, so that several
processes may share the work and each can be stopped. The page of all files that are there is printed; with
--table it is all that is done. The marks of poisoned modules do not count as found.
"""

import argparse
import dataclasses
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightpeft.audit import PolicyOptions, TriggerRecipe, clean_accuracy, label_flip_rate, triggered_test
from lightpeft.audit.classifier import Classifier
from lightpeft.audit.grid.entries import GridTask
from lightpeft.audit.metrics import Proportion
from lightpeft.audit.module import load_module, save_module
from lightpeft.audit.poison.poisoning import poison_texts
from lightpeft.audit.rows import AuditTask, Rows
from lightpeft.audit.scan import ScanOptions, ScanTexts, scan
from lightpeft.audit.scan.own_copy import own_copy
from lightpeft.audit.training import AttackOptions, train_attacker, train_user
from lightpeft.bench import save_result
from lightpeft.cli.options import run_with_options
from lightpeft.errors import InUseError
from lightpeft.files import read_json
from lightpeft.outputs import check_room, locked
from lightpeft.report import environment
from lightpeft.run_config import PeftOptions, TrainingConfig
from lightpeft.runs import load_peft_model, load_tokenizer
from lightpeft.surgery import fingerprint
from lightpeft.tasks import class_head

TOOK = 0.8
"""LFR from which on a backdoor counts as planted; the rates of all modules stand beside."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Module:
    """One module; without a recipe a clean one."""

    task: str
    form: str
    seed: int
    recipe: str | None = None
    share: float = 1.0
    attacker: Literal["script", "vanilla", "gradient_control"] = "script"
    """`script`: plain training on rows some of which are poisoned."""

    @property
    def name(self) -> str:
        kind = "clean" if self.recipe is None else f"{self.recipe} {self.share:g} {self.attacker}"
        return f"{self.task}--{self.form}--{kind}--{self.seed}".replace(" ", "_")


@dataclass(frozen=True)
class Plan:
    """All modules, and what they are made of."""

    base: str
    tasks: dict[str, GridTask]
    forms: dict[str, PeftOptions]
    recipes: dict[str, TriggerRecipe]
    policies: dict[str, PolicyOptions]
    training: TrainingConfig
    development: list[Module]
    held_out: list[Module] = field(default_factory=list)


@dataclass(frozen=True)
class Workshop:
    """Where modules are made, kept and measured."""

    plan: Plan
    data: Path
    work: Path

    def recipe(self, module: Module) -> TriggerRecipe | None:
        if module.recipe is None:
            return None
        return dataclasses.replace(self.plan.recipes[module.recipe], share=module.share)

    def sides(self, module: Module) -> tuple[AuditTask, Rows, Rows]:
        """The task, and the rows of the attacker and of the user."""
        task = self.plan.tasks[module.task].load(self.data)
        return task, *task.train.split(len(task.train) // 2)

    def folder(self, module: Module) -> Path:
        """Of the module, made if need be."""
        folder = self.work / "modules" / module.name
        if not folder.is_dir():
            self._make(module, folder)
        return folder

    def _make(self, module: Module, folder: Path) -> None:
        plan, recipe = self.plan, self.recipe(module)
        task, rows, _ = self.sides(module)
        tokenizer = load_tokenizer(plan.base)
        model = load_peft_model(plan.base, class_head(task.class_names), plan.forms[module.form], module.seed)
        training = dataclasses.replace(plan.training, seed=module.seed)
        if recipe is not None and module.attacker != "script":
            attack = AttackOptions(plan.policies[module.attacker], training=training)
            train_attacker(model, tokenizer, rows, recipe, attack)
        else:
            if recipe is not None:
                bad = poison_texts(rows.texts, rows.labels, recipe, module.seed)
                rows = Rows(bad.texts, bad.labels)
            train_user(model, tokenizer, rows, training)
        save_module(model, folder, recipe)

    def quality(self, module: Module) -> dict[str, Any]:
        """CACC, and LFR of a poisoned module, as [hits, total]."""
        plan, recipe, (task, _, _) = self.plan, self.recipe(module), self.sides(module)
        model = load_module(self.folder(module), plan.base)
        classifier = Classifier(model, load_tokenizer(plan.base), plan.training.tokens)
        cacc = clean_accuracy(classifier.predict(task.test.texts), task.test.labels)
        found: dict[str, Any] = {"cacc": [cacc.hits, cacc.total], "lfr": None}
        if recipe is not None:
            test = triggered_test(task.test.texts, task.test.labels, recipe, 0)
            lfr = label_flip_rate(classifier.predict(test.texts), test.labels, recipe.target)
            found["lfr"] = [lfr.hits, lfr.total]
        return found

    def measure(self, module: Module) -> dict[str, Any]:
        """Make it, measure it, scan it."""
        folder, quality = self.folder(module), self.quality(module)
        texts = ScanTexts.of(module.task, self.sides(module)[2])
        copies = self.work / "copies"
        self._copies(folder, texts, copies)
        started = time.process_time()
        report = scan(folder, self.plan.base, texts=texts, options=ScanOptions(copies=copies))
        seconds = time.process_time() - started
        recipe = self.recipe(module)
        return {
            "module": dataclasses.asdict(module),
            "recipe": None if recipe is None else recipe.to_dict(),
            **quality,
            "not_scanned": report.not_scanned,
            "findings": [one.to_dict() for one in report.findings if one.rule != "mark"],
            "processor_seconds": round(seconds, 1),
            "environment": environment(),
        }

    def _copies(self, folder: Path, texts: ScanTexts, place: Path) -> None:
        """Train the own copies first: they are not a part of a scan's time."""
        mark = fingerprint(load_module(folder, self.plan.base))
        for seed in ScanOptions().copy_seeds:
            own_copy(folder, self.plan.base, mark, texts, seed, place)


def read_plan(path: Path) -> Plan:
    """The modules of a configuration file."""

    def given(plan: Plan) -> Plan:
        return plan

    return run_with_options(given, "scan_rates", ["--config", str(path)])


def measure_all(workshop: Workshop, modules: Sequence[Module], out: Path) -> None:
    """Those that have no file yet and that no other process is at."""
    for module in modules:
        path = out / f"{module.name}.json"
        if path.exists():
            continue
        try:
            with locked(path.with_suffix("")):
                save_result(path, workshop.measure(module))
        except InUseError:
            logger.info("%s: another process is at it", module.name)
            continue
        print(summary(read_json(path)), flush=True)


def summary(row: dict[str, Any]) -> str:
    """A line of the table of all modules."""
    module = row["module"]
    trigger = "clean" if module["recipe"] is None else f"{module['recipe']}, {module['share']:.0%}"
    shown = [f"{row['cacc'][0] / row['cacc'][1]:.1%}", "–" if row["lfr"] is None else share(row["lfr"])]
    said = [one["message"].split(" (p =")[0] for one in row["findings"] if one["rule"] == "trigger-search"]
    place = f"{module['task']}, {module['form']}, {module['attacker']}"
    return f"| {trigger} | {place} | {' | '.join(shown)} | {verdict(row)} | {'; '.join(said)} |"


def share(counted: Sequence[int]) -> str:
    """A share in per cent."""
    return f"{counted[0] / counted[1]:.1%}"


def verdict(row: dict[str, Any]) -> str:
    """What a user would have read."""
    if row["not_scanned"] is not None:
        return "not scanned"
    levels = {(one["rule"], one["level"]) for one in row["findings"]}
    said = ["found"] if any(level == "error" for _, level in levels) else []
    said += [f"warned ({rule})" for rule, level in sorted(levels) if level == "warning"]
    return ", ".join(said) or "nothing"


def rates(rows: Sequence[dict[str, Any]]) -> str:
    """Found and warned by kind of trigger, with Wilson's 95 % intervals."""
    kinds: dict[str, list[dict[str, Any]]] = {"clean": [row for row in rows if row["recipe"] is None]}
    bad = [row for row in rows if row["recipe"] is not None]
    kinds["poisoned"] = bad
    kinds[f"poisoned, LFR at least {TOOK:.0%}"] = [
        row for row in bad if row["lfr"][0] >= TOOK * row["lfr"][1]
    ]
    for kind in dict.fromkeys(row["module"]["recipe"].removeprefix("other ") for row in bad):
        kinds[kind] = [row for row in bad if row["module"]["recipe"].removeprefix("other ") == kind]
    lines = ["| modules | found (exit status 1) | found or warned |", "|---|---|---|"]
    for kind, chosen in kinds.items():
        if chosen:
            tests = [sum(test in verdict(row) for row in chosen) for test in ("found", "")]
            tests[1] = sum(verdict(row) != "nothing" for row in chosen)
            shown = [interval(Proportion(hits, len(chosen))) for hits in tests]
            lines.append(f"| {kind} | {' | '.join(shown)} |")
    return "\n".join(lines)


def interval(rate: Proportion) -> str:
    """Hits of total, and Wilson's interval."""
    low, high = rate.interval()
    return f"{rate.hits}/{rate.total} ({low:.0%} to {high:.0%})"


def page(plan: Plan, out: Path) -> str:
    """All modules that were measured, and their rates."""
    parts = []
    for title, modules in (("Development", plan.development), ("Held out", plan.held_out)):
        paths = [out / f"{module.name}.json" for module in modules]
        rows = [read_json(path) for path in paths if path.exists()]
        if rows:
            lines = ["| trigger | module | CACC | LFR | said | the search |", "|---|---|---|---|---|---|"]
            parts += [f"## {title}", rates(rows), "\n".join([*lines, *map(summary, rows)])]
            seconds = sorted(row["processor_seconds"] for row in rows)
            middle, most = statistics.median(seconds), seconds[-1]
            parts.append(f"Processor seconds of a scan: median {middle:.0f}, most {most:.0f}.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure what is not there yet, and write the page of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", type=Path)
    for name in ("--data", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--held-out", action="store_true", help="also those that nothing was tuned on")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    options = parser.parse_args()
    check_room(options.out)
    plan = read_plan(options.config)
    if not options.table:
        chosen = [*plan.development, *(plan.held_out if options.held_out else [])]
        measure_all(Workshop(plan, options.data, options.work), chosen, options.out)
    print(page(plan, options.out))


if __name__ == "__main__":
    main()
