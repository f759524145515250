"""Causal language models on the tasks of EleutherAI's lm-evaluation-harness, which asks and scores."""

import io
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightpeft.errors import ConfigError, did_you_mean
from lightpeft.runs.generation import Generating
from lightpeft.runs.models import first_line

logger = logging.getLogger(__name__)

PACKAGE = "lm-eval"
_LOGGER = "lm_eval"
_LOGGER_OF_MODELS = f"{_LOGGER}.models.huggingface"


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks and groups of the harness with their data, ready to be asked."""

    loaded: tuple[Any, ...]
    manager: Any
    """The harness's index of all tasks, which takes seconds to make."""


@dataclass(frozen=True)
class HarnessScore:
    """One metric of a task, or of a group as the harness sums it up."""

    task: str
    metric: str
    """The harness's name; behind a comma, what was done to the answers first, if anything."""

    value: float | None
    """None where it is not a finite number."""

    stderr: float | None
    questions: int | None
    shots: int | None
    """Solved examples before each question."""


def check_harness_options(
    names: Sequence[str], batch_size: int | None, num_fewshot: int | None, limit: int | None
) -> None:
    """Check what can be known before anything is read.

    Raises:
        ConfigError: no task, a number out of range, or the harness is not installed.
    """
    if not names:
        raise ConfigError("harness names no task; give one or more, as in arc_easy,boolq.")
    least = {"batch_size": (batch_size, 1), "num_fewshot": (num_fewshot, 0), "limit": (limit, 1)}
    for name, (value, smallest) in least.items():
        if value is not None and value < smallest:
            raise ConfigError(f"{name} is {value}; give at least {smallest}.")
    try:
        with _quiet():
            import_module("lm_eval.evaluator")
            import_module("lm_eval.models.huggingface")
    except ImportError as error:
        missing = error.name or PACKAGE
        raise ConfigError(
            f"the harness's tasks are scored by {PACKAGE}, and {missing} is not installed: "
            'pip install "lightpeft[harness]"'
        ) from error


def load_harness_tasks(names: Sequence[str], folder: Path | None = None) -> HarnessTasks:
    """Find tasks, groups and tags by name, and load their data. Code that their files name runs here.

    Args:
        folder: with task files (`.yaml`) beside those of the harness; of two with one name, its own counts.

    Raises:
        ConfigError: an unknown name, a folder that is none, a task that cannot be loaded, one task twice, or
            one that runs what the model writes or has other questions than texts.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"harness_tasks is {folder}, which is no folder; give one with task files (.yaml).")
    manager = _index(names, folder)
    for name in names:
        _check_known(name, manager, folder)
    loaded = tuple(one for name in names for one in _load(name, manager))
    try:
        tasks = manager.load(list(loaded))["tasks"]
    except ValueError as error:
        raise ConfigError(f"the tasks {', '.join(names)} overlap: {first_line(error)}") from error
    for name, task in tasks.items():
        _check_harmless(name, task)
    return HarnessTasks(loaded, manager)


def ask_harness(
    model: Generating,
    tokenizer: PreTrainedTokenizerBase,
    tasks: HarnessTasks,
    *,
    batch_size: int,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> list[HarnessScore]:
    """The scores of a causal language model, as `lm_eval.simple_evaluate` gives them for `HFLM`.

    Args:
        num_fewshot: by default what each task says; a task that says 0 keeps to it, which is warned about.
        limit: only the first questions of each task.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        asked = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        with _warnings_once():
            results = simple_evaluate(
                asked,
                tasks=list(tasks.loaded),
                task_manager=tasks.manager,
                num_fewshot=num_fewshot,
                limit=limit,
                log_samples=False,
            )
    shots: Mapping[str, int] = results["n-shot"]
    odd = sorted(name for name in results["configs"] if num_fewshot not in (None, shots.get(name)))
    if odd:
        logger.warning(
            "num_fewshot has no effect on %s, whose task files forbid examples", ", ".join(map(repr, odd))
        )
    return [score for name, found in results["results"].items() for score in _scores(name, found, shots)]


def harness_version() -> str:
    """The version of the harness; scores may depend on it."""
    return version(PACKAGE)


def _index(names: Sequence[str], folder: Path | None) -> Any:
    """The user's own tasks alone if they are all that is asked for: the harness has 14,000 files to read."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        if folder is None:
            return TaskManager()
        own = TaskManager(include_path=str(folder), include_defaults=False)
        # A group may have members among the harness's own tasks.
        only_own = all(name in own.all_subtasks for name in names)
        return own if only_own else TaskManager(include_path=str(folder))


def _check_known(name: str, manager: Any, folder: Path | None) -> None:
    if name in manager.task_index:
        return
    own = "" if folder is None else f", nor of a readable .yaml file in {folder}"
    raise ConfigError(
        f"{name!r} is no task, group or tag of {PACKAGE} {harness_version()}{own}."
        f"{did_you_mean(name, manager.all_tasks)}"
    )


def _load(name: str, manager: Any) -> list[Any]:
    """The group of a name, or the task; of a tag its tasks."""
    try:
        with _quiet():
            found = manager.load(name)
    except Exception as error:  # Code and data of anybody's task can fail anyhow.
        raise ConfigError(
            f"the task {name!r} of {PACKAGE} cannot be loaded with its data: {first_line(error)}"
        ) from error
    group = found["groups"].get(name)
    return list(found["tasks"].values()) if group is None else [group]


def _check_harmless(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"the task {name!r} runs code that the model writes, which lightpeft does not do.")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"the task {name!r} asks about pictures or sound; choose one that asks in text.")


def _scores(name: str, found: Mapping[str, Any], shots: Mapping[str, int]) -> Iterator[HarnessScore]:
    """What the harness has as `acc,none` and `acc_stderr,none`."""
    for key, value in found.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = found.get(f"{metric}_stderr,{kept}")
        label = metric if kept == "none" else key
        count = found.get("sample_len")
        yield HarnessScore(name, label, _number(value), _number(stderr), count, shots.get(name))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):  # "N/A"
        return None
    return number if math.isfinite(number) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of the harness's own on the terminal: log lines, progress bars, and what it prints."""
    harness = logging.getLogger(_LOGGER)
    level = harness.level
    harness.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        harness.setLevel(level)


@contextmanager
def _warnings_once() -> Iterator[None]:
    """What the harness warns of while it asks a model (texts that it shortens), in one line for each kind."""
    models, seen = logging.getLogger(_LOGGER_OF_MODELS), _Seen()
    level, propagates = models.level, models.propagate
    models.setLevel(logging.WARNING)
    models.propagate = False
    models.addHandler(seen)
    try:
        yield
    finally:
        models.removeHandler(seen)
        models.setLevel(level)
        models.propagate = propagates
    for place, count in seen.counts.items():
        logger.warning("%s warned %d times, first: %s", PACKAGE, count, seen.first[place])


class _Seen(logging.Handler):
    """The first warning of each place in the harness's code, and how many there were."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[tuple[str, int]] = Counter()
        self.first: dict[tuple[str, int], str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        place = (record.pathname, record.lineno)
        self.counts[place] += 1
        self.first.setdefault(place, record.getMessage())
