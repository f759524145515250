"""Measure one cell: CACC and LFR before, along and after the user's training, with or without a defence."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from lightpeft.audit.attackers import Workshop
from lightpeft.audit.cell import Cell, CellKey, Point
from lightpeft.audit.choices import CLEAN
from lightpeft.audit.classifier import Classifier
from lightpeft.audit.defences import Guard, Received
from lightpeft.audit.grid import Grid, as_json
from lightpeft.audit.metrics import Proportion, clean_accuracy, label_flip_rate
from lightpeft.audit.poison.poisoning import Poisoned, triggered_test
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.audit.poison.visibility import trigger_visibility
from lightpeft.audit.rows import AuditTask, Rows, Texts
from lightpeft.audit.scenarios import SCENARIOS
from lightpeft.audit.training import Watcher, user_steps
from lightpeft.run_config import TrainingConfig

REJECTED = -1
"""In place of a class: a guard refused the text, which is neither right nor flipped."""


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


def measure(workshop: Workshop, key: CellKey) -> Cell:
    """One cell."""
    grid, task = workshop.grid, workshop.tasks[key.user_task]
    recipes = {name: grid.recipe(name, key.attacker_task, key.user_task) for name in grid.attacks}
    recipe = None if key.attack == CLEAN else recipes[key.attack]
    shown = recipe or next(iter(recipes.values()))
    scenario = SCENARIOS[key.scenario]
    begin = scenario.begin(workshop, key, recipe)
    start = time.perf_counter()
    training = grid.training(grid.user, key.form, key.seed)
    triggered = triggered_test(task.test.texts, task.test.labels, shown, key.seed)
    curve = Curve(
        Classifier.under(begin.model, workshop.tokenizer, training),
        task,
        triggered,
        shown.target,
        grid.analyses,
    )
    curve.add(0)
    received = Received(
        begin.model,
        workshop.tokenizer,
        begin.train,
        task.held_out,
        training,
        begin.fresh,
        key.seed,
        _watch(grid, training, begin.train, curve),
    )
    defence = grid.defence(key.defence)
    prepared = defence.prepare(received)
    model = defence.train(received) if scenario.trains else begin.model
    classifier, guard = received.classifier(model), defence.guard(received, model, prepared)
    clean, flipped = (predict(classifier, guard, texts) for texts in (task.test.texts, triggered.texts))
    return Cell(
        key=key,
        recipe={} if recipe is None else recipe.to_dict(),
        attacked=None if begin.attacked is None else begin.attacked.point,
        curve=tuple(curve.points),
        after=_point(curve.points[-1].step, clean, flipped, task.test, triggered, shown.target),
        floors=_floors(classifier, task, recipes, key.seed) if key.attack == CLEAN else {},
        triggers_left=trigger_visibility(triggered, workshop.tokenizer, training.tokens).texts_with_any,
        rejected_clean=_rejected(guard, clean),
        rejected_triggered=_rejected(guard, flipped),
        layers=() if begin.attacked is None else begin.attacked.layers,
        similarity=tuple(curve.similarity),
        settings=settings(grid, key),
        seconds=round(time.perf_counter() - start, 2),
    )


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


def predict(classifier: Classifier, guard: Guard | None, texts: Texts) -> list[int]:
    """Class ids behind a guard, `REJECTED` where it refuses."""
    if guard is None:
        return classifier.predict(texts)
    screened = guard.screen(texts)
    found = classifier.predict(screened.texts)
    return [REJECTED if no else label for no, label in zip(screened.rejected, found, strict=True)]


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
