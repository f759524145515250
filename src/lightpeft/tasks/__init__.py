"""Data set -> features -> metric, for every kind of task."""

from typing import TYPE_CHECKING

from lightpeft.lazy import lazy_names

if TYPE_CHECKING:
    from lightpeft.tasks.errors import TaskError
    from lightpeft.tasks.features import encode, truncated_share
    from lightpeft.tasks.files import text_lines
    from lightpeft.tasks.kinds import KINDS, find_kind
    from lightpeft.tasks.kinds.classification import class_head
    from lightpeft.tasks.kinds.kind import Collator, Evaluated, TaskKind
    from lightpeft.tasks.kinds.language_modelling import encode_language, token_losses
    from lightpeft.tasks.load import load_task, load_validation
    from lightpeft.tasks.metrics import compute_metrics_for
    from lightpeft.tasks.record import TaskRecord
    from lightpeft.tasks.registry import TASKS, custom_task, find_task, task_names
    from lightpeft.tasks.spec import GeneratedSource, HubSource, TaskData, TaskSpec, ValidationData
    from lightpeft.tasks.synthetic import generate_sentiment
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "KINDS",
    "TASKS",
    "Collator",
    "Evaluated",
    "GeneratedSource",
    "HubSource",
    "TaskData",
    "TaskError",
    "TaskKind",
    "TaskRecord",
    "TaskSpec",
    "ValidationData",
    "class_head",
    "compute_metrics_for",
    "custom_task",
    "encode",
    "encode_language",
    "find_kind",
    "find_task",
    "generate_sentiment",
    "load_task",
    "load_validation",
    "task_names",
    "text_lines",
    "token_losses",
    "truncated_share",
]
