"""The audit: how well a backdoor in a received PEFT module survives clean training, and what removes it.

After Gu et al., ACL 2023, "A Gradient Control Method for Backdoor Attacks on PET", on local data. What is
poisoned is marked in its own files.
"""

from typing import TYPE_CHECKING

from lightpeft.lazy import lazy_names

if TYPE_CHECKING:
    from lightpeft.audit.cell import Cell, CellKey, load_cells
    from lightpeft.audit.classifier import Classifier
    from lightpeft.audit.defences import DEFENCES, Defence, Received, make_defence
    from lightpeft.audit.errors import AuditError
    from lightpeft.audit.grid import Grid
    from lightpeft.audit.grid_entries import GridAttack, GridDefence, GridTask
    from lightpeft.audit.marks import PoisonMark, is_poisoned, mark_poisoned, read_mark, require_clean
    from lightpeft.audit.metrics import (
        Difference,
        Proportion,
        Spread,
        clean_accuracy,
        difference,
        label_flip_rate,
        over_floor,
        over_seeds,
    )
    from lightpeft.audit.module import load_module, save_module
    from lightpeft.audit.poison.poisoning import Poisoned, poison_texts, triggered_test
    from lightpeft.audit.poison.recipe import TriggerRecipe
    from lightpeft.audit.poison.triggers import TRIGGER_FORMS, Planted, TriggerForm, plant
    from lightpeft.audit.poison.visibility import Visibility, trigger_visibility
    from lightpeft.audit.policies.cross_layer import wanted_norms
    from lightpeft.audit.policies.gradients import TaskPair, pair_of, task_gradients
    from lightpeft.audit.policies.joint_step import StepRecord, step
    from lightpeft.audit.policies.layers import LayerGroup, LayerMap, map_layers
    from lightpeft.audit.policies.layerwise import layerwise_loss
    from lightpeft.audit.policies.options import PolicyOptions
    from lightpeft.audit.policies.policy import Policy
    from lightpeft.audit.policies.projection import project
    from lightpeft.audit.policies.table import POLICIES, make_policy
    from lightpeft.audit.rows import AuditTask, Rows
    from lightpeft.audit.run import run_grid
    from lightpeft.audit.training import AttackOptions, train_attacker, train_user
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "DEFENCES",
    "POLICIES",
    "TRIGGER_FORMS",
    "AttackOptions",
    "AuditError",
    "AuditTask",
    "Cell",
    "CellKey",
    "Classifier",
    "Defence",
    "Difference",
    "Grid",
    "GridAttack",
    "GridDefence",
    "GridTask",
    "LayerGroup",
    "LayerMap",
    "Planted",
    "PoisonMark",
    "Poisoned",
    "Policy",
    "PolicyOptions",
    "Proportion",
    "Received",
    "Rows",
    "Spread",
    "StepRecord",
    "TaskPair",
    "TriggerForm",
    "TriggerRecipe",
    "Visibility",
    "clean_accuracy",
    "difference",
    "is_poisoned",
    "label_flip_rate",
    "layerwise_loss",
    "load_cells",
    "load_module",
    "make_defence",
    "make_policy",
    "map_layers",
    "mark_poisoned",
    "over_floor",
    "over_seeds",
    "pair_of",
    "plant",
    "poison_texts",
    "project",
    "read_mark",
    "require_clean",
    "run_grid",
    "save_module",
    "step",
    "task_gradients",
    "train_attacker",
    "train_user",
    "trigger_visibility",
    "triggered_test",
    "wanted_norms",
]
