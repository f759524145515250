"""The attacker's part: modules and bases, made once and kept, marked where they are poisoned."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, set_seed

from lightpeft.anatomy import layer_modules
from lightpeft.audit.choices import CLEAN, NO_DEFENCE
from lightpeft.audit.classifier import Classifier
from lightpeft.audit.errors import AuditError
from lightpeft.audit.grid.cell import (
    CellKey,
    LayerReading,
    Point,
    plain,
    read_layers,
    read_point,
)
from lightpeft.audit.grid.grid import Grid, as_json
from lightpeft.audit.marks import mark_card
from lightpeft.audit.metrics import Proportion, clean_accuracy, label_flip_rate
from lightpeft.audit.module import load_module, save_module
from lightpeft.audit.poison.poisoning import triggered_test
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.audit.policies.joint_step import StepRecord
from lightpeft.audit.policies.layers import map_layers
from lightpeft.audit.rows import AuditTask
from lightpeft.audit.training import train_attacker, train_user
from lightpeft.files import read_json, write_json
from lightpeft.outputs import Output, written_folder
from lightpeft.run_config import TrainingConfig
from lightpeft.runs import load_peft_model, resolve_model
from lightpeft.tasks import class_head

_RECORD = "attack.json"


@dataclass(frozen=True)
class Attacked:
    """What the attacker gives away, and what was seen while it was made."""

    folder: Path
    """A PEFT module, or a whole base."""

    recipe: TriggerRecipe | None
    point: Point
    """On the attacker's own test set."""
    layers: tuple[LayerReading, ...]


@dataclass(frozen=True)
class Workshop:
    """Where attackers' modules are made and kept: the same one serves every user and every defence."""

    grid: Grid
    tasks: dict[str, AuditTask]
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    def module(self, key: CellKey) -> Attacked:
        """The module that the attacker of a cell trains on the clean base."""
        return self._kept(key, key.form, self._train_module)

    def base(self, key: CellKey) -> Attacked:
        """The base that the attacker of a cell trains, all weights of it, with a head that is dropped."""
        return self._kept(key, "base", self._train_base)

    def _kept(self, key: CellKey, form: str, make: Callable[[CellKey, Path], dict[str, Any]]) -> Attacked:
        name = f"{key.attacker_task}--{key.attack}--{form}--{key.seed}"
        folder = self.folder / name.replace("/", "_")
        wanted = self._settings(key, form)
        if not (folder / _RECORD).is_file():
            with written_folder(folder, Output.MODULE) as beside:
                record = make(key, beside)
                write_json(beside / _RECORD, {"settings": wanted, **record})
        value = read_json(folder / _RECORD)
        if value["settings"] != wanted:
            raise AuditError(
                f"{folder} was made with other settings than the grid has now; choose another folder for "
                "this grid, or delete that one."
            )
        return Attacked(folder, self._recipe(key), read_point(value["point"]), read_layers(value["layers"]))

    def _settings(self, key: CellKey, form: str) -> dict[str, Any]:
        grid = self.grid
        attack = None if key.attack == CLEAN else as_json(grid.attacks[key.attack])
        return {
            "model": grid.model,
            "task": as_json(grid.tasks[key.attacker_task]),
            "attack": attack,
            "training": as_json(self._training(key)),
            "start": self._settings(self._clean(key), form) if self._from_clean(key) else None,
            "peft": None if form == "base" else as_json(grid.peft(key.form)),
            "analyses": grid.analyses,
        }

    def _recipe(self, key: CellKey) -> TriggerRecipe | None:
        if key.attack == CLEAN:
            return None
        return self.grid.recipe(key.attack, key.attacker_task, key.attacker_task)

    def _clean(self, key: CellKey) -> CellKey:
        return dataclasses.replace(key, attack=CLEAN, defence=NO_DEFENCE)

    def _from_clean(self, key: CellKey) -> bool:
        return self.grid.from_clean and key.attack != CLEAN

    def _training(self, key: CellKey) -> TrainingConfig:
        side = self.grid.attacker
        if key.attack == CLEAN and self.grid.clean is not None:
            side = self.grid.clean
        return self.grid.training(side, key.form, key.seed)

    def _train_module(self, key: CellKey, folder: Path) -> dict[str, Any]:
        head, grid = class_head(self.tasks[key.attacker_task].class_names), self.grid
        if self._from_clean(key):
            start = self.module(self._clean(key)).folder
            model = load_module(start, grid.model, head=head, is_trainable=True)
        else:
            model = load_peft_model(grid.model, head, grid.peft(key.form), key.seed)
        found = self._attack(key, model)
        save_module(model, folder, self._recipe(key))
        return found

    def _train_base(self, key: CellKey, folder: Path) -> dict[str, Any]:
        head = class_head(self.tasks[key.attacker_task].class_names)
        set_seed(key.seed)
        start = str(self.base(self._clean(key)).folder) if self._from_clean(key) else self.grid.model
        model = AutoModelForSequenceClassification.from_pretrained(resolve_model(start), **head)
        found = self._attack(key, model)
        recipe = self._recipe(key)
        if recipe is not None:
            folder.mkdir(parents=True, exist_ok=True)
            mark_card(folder, recipe)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return found

    def _attack(self, key: CellKey, model: nn.Module) -> dict[str, Any]:
        task, recipe, grid = self.tasks[key.attacker_task], self._recipe(key), self.grid
        training = self._training(key)
        start = time.perf_counter()
        layers: list[LayerReading] = []
        if recipe is None:
            train_user(model, self.tokenizer, task.train, training)
            # Of a clean module LFR has no trigger of its own: that of the first attack stands in.
            recipe = grid.recipe(next(iter(grid.attacks)), key.attacker_task, key.attacker_task)
        else:
            options = grid.attacks[key.attack].options(training)
            titles = [group.title for group in map_layers(model).groups]
            layers = readings(titles, train_attacker(model, self.tokenizer, task.train, recipe, options))
        seconds = time.perf_counter() - start
        classifier = Classifier.under(model, self.tokenizer, training)
        test = triggered_test(task.test.texts, task.test.labels, recipe, key.seed)
        cacc = clean_accuracy(classifier.predict(task.test.texts), task.test.labels)
        lfr = label_flip_rate(classifier.predict(test.texts), test.labels, recipe.target)
        if layers and grid.analyses and isinstance(model, PeftModel):

            def measure() -> Proportion:
                return label_flip_rate(classifier.predict(test.texts), test.labels, recipe.target)

            layers = [without(model, layer, measure) for layer in layers]
        return {"point": plain(Point(0, cacc, lfr)), "layers": plain(layers), "seconds": round(seconds, 2)}


def readings(titles: list[str], records: list[StepRecord]) -> list[LayerReading]:
    """Per layer, means over the steps of the attacker's training."""
    found = []
    for number, title in enumerate(titles):
        cosines = [c for record in records if (c := record.cosines[number]) is not None]
        weights = records[-1].readings.get("w")
        found.append(
            LayerReading(
                title,
                statistics.fmean(record.clean_norms[number] for record in records),
                statistics.fmean(record.poisoned_norms[number] for record in records),
                statistics.fmean(cosines) if cosines else None,
                None if weights is None else weights[number],
            )
        )
    return found


def without(model: PeftModel, layer: LayerReading, measure: Callable[[], Proportion]) -> LayerReading:
    """A layer with its LFR while its PEFT modules are switched off; the output layer cannot be."""
    modules = dict(layer_modules(model)).get(layer.title)
    if modules is None:
        return layer
    with switched_off(modules):
        return LayerReading(**vars(layer) | {"lfr_without": measure()})


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """The PEFT modules inside `module` have no effect, as if they were not there."""
    layers = [inner for inner in module.modules() if isinstance(inner, BaseTunerLayer)]
    trained = {id(p): p.requires_grad for inner in layers for p in inner.parameters()}
    for inner in layers:
        inner.enable_adapters(False)
    try:
        yield
    finally:
        for inner in layers:
            inner.enable_adapters(True)
            for parameter in inner.parameters():
                parameter.requires_grad_(trained[id(parameter)])
