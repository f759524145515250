"""Measure one cell: CACC and LFR before, along and after the user's training, with or without a defence."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lightpeft.audit.choices import CLEAN, NO_DEFENCE
from lightpeft.audit.classifier import Classifier
from lightpeft.audit.defences import REJECTED, Defence, Guard, Received, predict
from lightpeft.audit.grid.attackers import Workshop
from lightpeft.audit.grid.cell import Cell, CellKey, Point
from lightpeft.audit.grid.grid import Grid, as_json
from lightpeft.audit.grid.scenarios import SCENARIOS
from lightpeft.audit.metrics import Proportion, clean_accuracy, label_flip_rate
from lightpeft.audit.module import load_module
from lightpeft.audit.poison.poisoning import Poisoned, triggered_test
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.audit.poison.visibility import trigger_visibility
from lightpeft.audit.rows import AuditTask, Rows
from lightpeft.audit.training import Watcher, user_steps
from lightpeft.run_config import TrainingConfig


@dataclass
class Curve:
    """CACC, LFR and [CLS] similarity of a model, whenever `add` is called."""

    classifier: Classifier
    task: AuditTask
    triggered: Poisoned
    target: int
    with_similarity: bool
    points: list[Point] = field(default_factory=list)
    similarity: list[tuple[int, float]] = field(default_factory=list)
    _first: Tensor | None = None

    def add(self, step: int) -> None:
        """Measure now."""
        texts = (self.task.test.texts, self.triggered.texts)
        clean, flipped = (self.classifier.predict(one) for one in texts)
        self.points.append(_point(step, clean, flipped, self.task.test, self.triggered, self.target))
        if self.with_similarity:
            states = self.classifier.first_states(self.triggered.texts)
            self._first = states if self._first is None else self._first
            self.similarity.append((step, float(cosine_similarity(states, self._first).mean())))


@dataclass(frozen=True)
class Trained:
    """A model after the user's training."""

    key: CellKey
    """The cell, without its defence."""
    model: PeftModel
    curve: Curve
    seconds: float


def measure(workshop: Workshop, key: CellKey, plain: Trained | None = None) -> tuple[Cell, Trained | None]:
    """One cell.

    Args:
        plain: what an earlier call gave back. Guards change nothing about the training, so that those of one
            attack stand before one trained model.

    Returns:
        the cell, and the model of the last plain training.
    """
    grid, task = workshop.grid, workshop.tasks[key.user_task]
    recipes = {name: grid.recipe(name, key.attacker_task, key.user_task) for name in grid.attacks}
    recipe = None if key.attack == CLEAN else recipes[key.attack]
    shown = recipe or next(iter(recipes.values()))
    begin = SCENARIOS[key.scenario].begin(workshop, key, recipe)
    start = time.perf_counter()
    training = grid.training(grid.user, key.form, key.seed)
    triggered = triggered_test(task.test.texts, task.test.labels, shown, key.seed)
    classifier = Classifier.under(begin.model, workshop.tokenizer, training)
    curve = Curve(classifier, task, triggered, shown.target, grid.analyses)
    received = Received(
        begin.model,
        workshop.tokenizer,
        begin.train,
        task.held_out,
        training,
        begin.fresh,
        lambda other: load_module(other, grid.model),
        key.seed,
        _watch(grid, training, begin.train, curve),
    )
    defence, undefended = grid.defence(key.defence), dataclasses.replace(key, defence=NO_DEFENCE)
    prepared = defence.prepare(received)
    is_shared = plain is not None and plain.key == undefended and defence.trains_plainly
    trained = plain if plain is not None and is_shared else _train(defence, received, undefended, curve)
    classifier, guard = received.classifier(trained.model), defence.guard(received, trained.model, prepared)
    clean, flipped = (predict(classifier, guard, texts) for texts in (task.test.texts, triggered.texts))
    points = trained.curve.points
    cell = Cell(
        key=key,
        recipe={} if recipe is None else recipe.to_dict(),
        attacked=None if begin.attacked is None else begin.attacked.point,
        curve=tuple(points),
        after=_point(points[-1].step, clean, flipped, task.test, triggered, shown.target),
        floors=_floors(classifier, task, recipes, key.seed) if key.attack == CLEAN else {},
        triggers_left=trigger_visibility(triggered, workshop.tokenizer, training.tokens).texts_with_any,
        rejected_clean=_rejected(guard, clean),
        rejected_triggered=_rejected(guard, flipped),
        layers=() if begin.attacked is None else begin.attacked.layers,
        similarity=tuple(trained.curve.similarity),
        settings=settings(grid, key),
        seconds=round(time.perf_counter() - start + (trained.seconds if is_shared else 0), 2),
    )
    return cell, trained if defence.trains_plainly else plain


def _train(defence: Defence, received: Received, undefended: CellKey, curve: Curve) -> Trained:
    start = time.perf_counter()
    curve.add(0)
    trains = SCENARIOS[undefended.scenario].trains
    model = defence.train(received) if trains else received.model
    return Trained(undefended, model, curve, time.perf_counter() - start)


def settings(grid: Grid, key: CellKey) -> dict[str, Any]:
    """All that a cell's numbers depend on, as JSON values."""
    defence = grid.defence(key.defence)
    return {
        "model": grid.model,
        "attacker_task": as_json(grid.tasks[key.attacker_task]),
        "user_task": as_json(grid.tasks[key.user_task]),
        "attacks": {name: as_json(attack) for name, attack in grid.attacks.items() if key.attack == CLEAN}
        or as_json(grid.attacks[key.attack]),
        "defence": [defence.name, as_json(defence)],
        "attacker": as_json(grid.training(grid.attacker, key.form, key.seed)),
        "clean": as_json(grid.clean),
        "from_clean": grid.from_clean,
        "user": as_json(grid.training(grid.user, key.form, key.seed)),
        "peft": as_json(grid.peft(key.form)),
        "points": grid.points,
        "analyses": grid.analyses,
    }


def _watch(grid: Grid, training: TrainingConfig, rows: Rows, curve: Curve) -> dict[int, Watcher]:
    """The moments of the retention curve, evenly over the planned steps, the last one included."""
    steps = user_steps(len(rows), training)
    return {max(1, round(steps * number / grid.points)): curve.add for number in range(1, grid.points + 1)}


def _point(
    step: int, clean: list[int], flipped: list[int], test: Rows, triggered: Poisoned, target: int
) -> Point:
    return Point(
        step,
        clean_accuracy(clean, test.labels),
        label_flip_rate(flipped, triggered.labels, target),
    )


def _rejected(guard: Guard | None, predictions: list[int]) -> Proportion | None:
    return None if guard is None else Proportion(predictions.count(REJECTED), len(predictions))


def _floors(
    classifier: Classifier, task: AuditTask, recipes: Mapping[str, TriggerRecipe], seed: int
) -> dict[str, Proportion]:
    """LFR of a clean module under the trigger of each attack; equal triggers are measured once."""
    known: dict[TriggerRecipe, Proportion] = {}
    found = {}
    for name, recipe in recipes.items():
        if recipe not in known:
            test = triggered_test(task.test.texts, task.test.labels, recipe, seed)
            known[recipe] = label_flip_rate(classifier.predict(test.texts), test.labels, recipe.target)
        found[name] = known[recipe]
    return found
