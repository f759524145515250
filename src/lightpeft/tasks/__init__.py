"""Data set -> features -> metric: classification, regression and language modelling on one or two texts."""

from lightpeft.tasks.errors import TaskError
from lightpeft.tasks.features import encode, truncated_share
from lightpeft.tasks.files import text_lines
from lightpeft.tasks.language_modelling import encode_language, token_losses
from lightpeft.tasks.load import load_task, load_validation
from lightpeft.tasks.metrics import METRICS, compute_metrics_for
from lightpeft.tasks.registry import TASKS, custom_task, find_task, task_names
from lightpeft.tasks.spec import GeneratedSource, HubSource, Objective, TaskData, TaskSpec, ValidationData
from lightpeft.tasks.synthetic import generate_sentiment

__all__ = [
    "METRICS",
    "TASKS",
    "GeneratedSource",
    "HubSource",
    "Objective",
    "TaskData",
    "TaskError",
    "TaskSpec",
    "ValidationData",
    "compute_metrics_for",
    "custom_task",
    "encode",
    "encode_language",
    "find_task",
    "generate_sentiment",
    "load_task",
    "load_validation",
    "task_names",
    "text_lines",
    "token_losses",
    "truncated_share",
]
