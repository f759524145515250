"""The scenarios: what the user gets from the attacker, and what the user trains it on."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft import PeftModel

from lightpeft.audit.module import keep_marked, load_module, read_base_mark
from lightpeft.audit.poison.poisoning import poison_texts
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.audit.rows import Rows
from lightpeft.runs import load_peft_model
from lightpeft.tasks import class_head

if TYPE_CHECKING:  # cells and grids look names up here
    from lightpeft.audit.grid.attackers import Attacked, Workshop
    from lightpeft.audit.grid.cell import CellKey

_USER = 1_000_003


@dataclass(frozen=True)
class Start:
    """Where the user begins."""

    model: PeftModel
    """Trainable."""

    train: Rows
    """The user's training rows; poisoned in the scenario `poisoned_data` only."""

    fresh: Callable[[int], PeftModel]
    """seed -> a new module on the base that the user has."""

    attacked: "Attacked | None"
    """What came from the attacker; None: nothing but the data."""


def module_received(workshop: "Workshop", key: "CellKey", recipe: TriggerRecipe | None) -> Start:
    """The attacker's module on the clean base (`module_continued`, `module_as_is`)."""
    del recipe
    attacked = workshop.module(key)
    head = class_head(workshop.tasks[key.user_task].class_names)
    model = load_module(attacked.folder, workshop.grid.model, head=head, is_trainable=True)
    return Start(
        model, workshop.tasks[key.user_task].train, _fresh(workshop, key, workshop.grid.model), attacked
    )


def base_received(workshop: "Workshop", key: "CellKey", recipe: TriggerRecipe | None) -> Start:
    """The attacker's base with a fresh module (`poisoned_base`)."""
    del recipe
    attacked = workshop.base(key)
    fresh = _fresh(workshop, key, str(attacked.folder))
    return Start(fresh(key.seed), workshop.tasks[key.user_task].train, fresh, attacked)


def data_received(workshop: "Workshop", key: "CellKey", recipe: TriggerRecipe | None) -> Start:
    """A fresh module on the clean base, and training rows with triggers in them (`poisoned_data`)."""
    fresh = _fresh(workshop, key, workshop.grid.model, recipe)
    rows = workshop.tasks[key.user_task].train
    if recipe is not None:
        recipe = dataclasses.replace(recipe, train_count=workshop.grid.tasks[key.user_task].triggers)
        bad = poison_texts(rows.texts, rows.labels, recipe, key.seed)
        rows = Rows(bad.texts, bad.labels)
    return Start(fresh(key.seed), rows, fresh, None)


@dataclass(frozen=True)
class Scenario:
    """A row."""

    begin: "Callable[[Workshop, CellKey, TriggerRecipe | None], Start]"
    """What the user begins with."""

    title: str = ""
    """What the user received, for headings; by default the name."""

    afterwards: str = ""
    """When the backdoor was looked for, as the end of a sentence; by default it names the scenario."""

    trains: bool = True
    """Whether the user trains what came."""


SCENARIOS: dict[str, Scenario] = {
    "module_continued": Scenario(
        module_received, "received module, trained on", afterwards="after your training"
    ),
    "module_as_is": Scenario(
        module_received,
        "received module, used as it is",
        afterwards="in the module as you received it",
        trains=False,
    ),
    "poisoned_base": Scenario(
        base_received,
        "poisoned base, fresh module",
        afterwards="after you trained a fresh module on the poisoned base",
    ),
    "poisoned_data": Scenario(
        data_received, "poisoned training data", afterwards="after your training on the poisoned data"
    ),
}
"""By name. A new scenario is a function and a row here."""


def _fresh(
    workshop: "Workshop", key: "CellKey", base: str, recipe: TriggerRecipe | None = None
) -> Callable[[int], PeftModel]:
    """Makes new modules on a base; where it is poisoned, or the data will be (`recipe`), they say so."""
    head = class_head(workshop.tasks[key.user_task].class_names)
    options, recipe = workshop.grid.peft(key.form), recipe or read_base_mark(base)

    def make(seed: int) -> PeftModel:
        # Not the attacker's own start: what is reset would go back to it.
        model = load_peft_model(base, head, options, seed + _USER, marked_too=True)
        if recipe is not None:
            keep_marked(model, recipe)
        return model

    return make
