"""The audit: how well a backdoor in a received PEFT module survives clean training, and what removes it.

Building blocks after Gu et al., ACL 2023, "A Gradient Control Method for Backdoor Attacks on PET", to measure
defences on local data. What they poison is marked in its own files.
"""

from lightpeft.audit.cross_layer import wanted_norms
from lightpeft.audit.errors import AuditError
from lightpeft.audit.gradients import TaskPair, pair_of, task_gradients
from lightpeft.audit.joint_step import StepRecord, step
from lightpeft.audit.layers import LayerGroup, LayerMap, map_layers
from lightpeft.audit.layerwise import layerwise_loss
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
from lightpeft.audit.poisoning import Poisoned, poison, triggered_test
from lightpeft.audit.policies import POLICIES, make_policy
from lightpeft.audit.policy import Policy
from lightpeft.audit.policy_options import PolicyOptions
from lightpeft.audit.projection import project
from lightpeft.audit.recipe import TriggerRecipe
from lightpeft.audit.triggers import TRIGGER_FORMS, Planted, TriggerForm, plant
from lightpeft.audit.visibility import Visibility, trigger_visibility

__all__ = [
    "POLICIES",
    "TRIGGER_FORMS",
    "AuditError",
    "Difference",
    "LayerGroup",
    "LayerMap",
    "Planted",
    "PoisonMark",
    "Poisoned",
    "Policy",
    "PolicyOptions",
    "Proportion",
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
    "make_policy",
    "map_layers",
    "mark_poisoned",
    "over_floor",
    "over_seeds",
    "pair_of",
    "plant",
    "poison",
    "project",
    "read_mark",
    "require_clean",
    "step",
    "task_gradients",
    "trigger_visibility",
    "triggered_test",
    "wanted_norms",
]
