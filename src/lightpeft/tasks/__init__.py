"""Data set -> features -> metric, for classification and regression on one or two texts."""

from lightpeft.tasks.errors import TaskError
from lightpeft.tasks.features import encode, truncated_share
from lightpeft.tasks.load import load_task
from lightpeft.tasks.metrics import METRICS, compute_metrics_for
from lightpeft.tasks.registry import TASKS, custom_task, find_task, task_names
from lightpeft.tasks.spec import GeneratedSource, HubSource, TaskData, TaskSpec
from lightpeft.tasks.synthetic import generate_sentiment

__all__ = [
    "METRICS",
    "TASKS",
    "GeneratedSource",
    "HubSource",
    "TaskData",
    "TaskError",
    "TaskSpec",
    "compute_metrics_for",
    "custom_task",
    "encode",
    "find_task",
    "generate_sentiment",
    "load_task",
    "task_names",
    "truncated_share",
]
