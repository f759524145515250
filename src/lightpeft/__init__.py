"""Light-PEFT for Hugging Face transformers: estimate early what a task does not need, cut it, train on."""

import lightpeft.stopping  # noqa: F401, I001 - first: Ctrl-C shall end the imports below in one line

from importlib.metadata import version
from typing import TYPE_CHECKING

from lightpeft.lazy import import_after, lazy_names

if TYPE_CHECKING:
    from lightpeft.adapters import BottleneckConfig
    from lightpeft.anatomy import Anatomy, find_anatomy
    from lightpeft.checkpoint import (
        LightTasks,
        export_full_adapter,
        export_gguf,
        export_merged,
        export_onnx,
        export_torch,
        export_transformers,
        load,
        load_merged,
        save,
        save_with_state,
    )
    from lightpeft.config import Budget, EstimationConfig, LightConfig, PrefixConfig, SurgeryConfig, Target
    from lightpeft.errors import (
        AnatomyError,
        CheckpointError,
        ConfigError,
        EstimationError,
        LightPeftError,
        PlanError,
        VerificationError,
    )
    from lightpeft.estimation import estimate
    from lightpeft.plan import Plan
    from lightpeft.planning import make_plan
    from lightpeft.scores import Scores
    from lightpeft.surgery import CutReport, cut
    from lightpeft.training import LightCallback, LightTrainer
else:  # importing what these names stand for takes seconds
    __getattr__, __dir__ = lazy_names(__name__)

import_after("peft", "lightpeft.adapters.bottleneck")  # peft shall load bottleneck adapters itself
# transformers shall load merged folders itself
import_after("transformers.models.auto.configuration_auto", "lightpeft.registered.configuration")
import_after("transformers.models.auto.modeling_auto", "lightpeft.registered.models")

__version__ = version("lightpeft")

__all__ = [
    "Anatomy",
    "AnatomyError",
    "BottleneckConfig",
    "Budget",
    "CheckpointError",
    "ConfigError",
    "CutReport",
    "EstimationConfig",
    "EstimationError",
    "LightCallback",
    "LightConfig",
    "LightPeftError",
    "LightTasks",
    "LightTrainer",
    "Plan",
    "PlanError",
    "PrefixConfig",
    "Scores",
    "SurgeryConfig",
    "Target",
    "VerificationError",
    "__version__",
    "cut",
    "estimate",
    "export_full_adapter",
    "export_gguf",
    "export_merged",
    "export_onnx",
    "export_torch",
    "export_transformers",
    "find_anatomy",
    "load",
    "load_merged",
    "make_plan",
    "save",
    "save_with_state",
]
