"""The kinds of tasks, one row each; a kind's module says everything about it (`docs/tasks.md`)."""

from importlib import import_module
from typing import TYPE_CHECKING

from lightpeft.errors import did_you_mean, listed
from lightpeft.tasks.errors import TaskOptionError

if TYPE_CHECKING:
    from lightpeft.tasks.kinds.kind import TaskKind

CLASSIFICATION = "sequence-classification"
"""What a task is where nothing else is said."""

KINDS: dict[str, str] = {
    CLASSIFICATION: "lightpeft.tasks.kinds.classification",
    "multi-label-classification": "lightpeft.tasks.kinds.multi_label",
    "token-classification": "lightpeft.tasks.kinds.token_classification",
    "multiple-choice": "lightpeft.tasks.kinds.multiple_choice",
    "causal-multiple-choice": "lightpeft.tasks.kinds.likelihood",
    "question-answering": "lightpeft.tasks.kinds.question_answering",
    "candidate-classification": "lightpeft.tasks.kinds.candidates",
    "causal-lm": "lightpeft.tasks.kinds.language_modelling",
    "chat": "lightpeft.tasks.kinds.chat",
    "seq2seq-lm": "lightpeft.tasks.kinds.sequence_to_sequence",
}
"""By the name of the objective the module with its `KIND`. Imported when a task of it is used, not before."""


def find_kind(objective: str) -> "TaskKind":
    """The kind of an objective.

    Raises:
        TaskError: there is none of this name; names the nearest one, and all of them.
    """
    if objective not in KINDS:
        raise TaskOptionError(
            f"unknown objective {objective!r}.{did_you_mean(objective, KINDS)} Known: {listed(KINDS)}"
        )
    kind: TaskKind = import_module(KINDS[objective]).KIND
    return kind
