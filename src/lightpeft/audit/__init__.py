"""The audit: how well a backdoor in a received PEFT module survives clean training, and what removes it.

After Gu et al., ACL 2023, "A Gradient Control Method for Backdoor Attacks on PET", on local data. What is
poisoned is marked in its own files. The scan of a received module is `lightpeft.audit.scan`.
"""

from typing import TYPE_CHECKING

from lightpeft.lazy import lazy_names

if TYPE_CHECKING:
    from lightpeft.audit.errors import AuditError
    from lightpeft.audit.grid.cell import load_cells
    from lightpeft.audit.grid.entries import GridAttack, GridDefence, GridTask
    from lightpeft.audit.grid.grid import Grid
    from lightpeft.audit.grid.run import run_grid
    from lightpeft.audit.marks import is_poisoned, require_clean
    from lightpeft.audit.metrics import clean_accuracy, label_flip_rate, over_floor
    from lightpeft.audit.poison.poisoning import triggered_test
    from lightpeft.audit.poison.recipe import TriggerRecipe
    from lightpeft.audit.poison.visibility import trigger_visibility
    from lightpeft.audit.policies.options import PolicyOptions
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AuditError",
    "Grid",
    "GridAttack",
    "GridDefence",
    "GridTask",
    "PolicyOptions",
    "TriggerRecipe",
    "clean_accuracy",
    "is_poisoned",
    "label_flip_rate",
    "load_cells",
    "over_floor",
    "require_clean",
    "run_grid",
    "trigger_visibility",
    "triggered_test",
]
