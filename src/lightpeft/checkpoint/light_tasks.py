"""Several light checkpoints on one base in memory, and one call to switch between them."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightpeft.checkpoint.format import read_record
from lightpeft.checkpoint.load import find_folder, load
from lightpeft.checkpoint.origin import rebuild_base
from lightpeft.checkpoint.sharing import whole_base
from lightpeft.errors import CheckpointError
from lightpeft.surgery import record_of

Storages = dict[int, int]
"""Bytes by address."""


@dataclass(frozen=True)
class TaskMemory:
    """What one base and its tasks hold, in bytes. Memory that several tensors use counts once."""

    base: int
    tasks: dict[str, int]
    """What each task has beyond the base."""

    total: int
    """Base and tasks together."""

    separate: int
    """What the same cut models would hold, each loaded for itself."""

    full_copies: int
    """What one full copy of the base per task would hold."""


class LightTasks:
    """One base in memory that serves several light checkpoints.

    ```python
    tasks = LightTasks("sentence-transformers/all-MiniLM-L6-v2")
    tasks.add("mood", "runs/mood")
    tasks.add("topic", "runs/topic")
    tasks.use("topic")
    logits = tasks(**batch).logits
    ```

    Each task has its own cut weights, adapter, head and labels, and uses everything else of the base (see
    `load`), so that none changes another, also when one is trained or merged. All checkpoints have to be made
    from one base, loaded by one of transformers' auto classes: a classifier and a language model do not
    share.
    """

    def __init__(
        self,
        base: str | Path | PreTrainedModel | None = None,
        *,
        attn_implementation: str | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            base: folder or hub name, loaded once with the first task; or the loaded base, which stays as it
                is; by default the base that the first task's checkpoint names.
            attn_implementation: for a base that is still to be loaded.

        Raises:
            CheckpointError: the base was cut or carries PEFT, or attention was chosen for one that is built.
        """
        self._name = None if base is None or isinstance(base, nn.Module) else str(base)
        self._attention = attn_implementation
        self._base: PreTrainedModel | None = whole_base(base) if isinstance(base, nn.Module) else None
        if self._base is not None and attn_implementation is not None:
            raise CheckpointError("attn_implementation has no effect on a base that is already built.")
        self._models: dict[str, PeftModel] = {}
        self._active: str | None = None

    @property
    def base(self) -> PreTrainedModel | None:
        """The base that all share; None until the first task is added, if it is still to be loaded."""
        return self._base

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were added."""
        return tuple(self._models)

    @property
    def active(self) -> str | None:
        """The task that a call runs: the one last used, before that the one added first."""
        return self._active

    def add(self, name: str, folder: str | Path, *, is_trainable: bool = False) -> PeftModel:
        """Load a light checkpoint (a folder or a hub name) as the task `name`; the active one stays.

        Args:
            is_trainable: keep the adapter trainable.

        Raises:
            CheckpointError: the name is taken, or what `load` says: of another base, say. Nothing changed.
        """
        if name in self._models:
            raise CheckpointError(f"there is a task {name!r} already; remove it first, or take another name.")
        directory = find_folder(folder)
        base = self._base if self._base is not None else self._load_base(directory)
        model = load(directory, base, is_trainable=is_trainable)
        self._base, self._models[name] = base, model
        if self._active is None:
            self._active = name
        return model

    def use(self, name: str) -> PeftModel:
        """Make `name` the active task, in eval mode, and return its model.

        Raises:
            CheckpointError: there is no such task; names those there are.
        """
        model = self._model(name)
        self._active = name
        model.eval()
        return model

    def remove(self, name: str) -> None:
        """Forget a task and what only it holds; if it was the active one, none is.

        Raises:
            CheckpointError: there is no such task.
        """
        self._model(name)
        del self._models[name]
        if self._active == name:
            self._active = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active task's model.

        Raises:
            CheckpointError: no task is active.
        """
        if self._active is None:
            raise CheckpointError(f"no task is active; choose one with use(NAME): {self._known()}.")
        return self._models[self._active](*args, **kwargs)

    def memory(self) -> TaskMemory:
        """Bytes that the base and each task hold, and what they would hold without sharing."""
        base = {} if self._base is None else _storages(self._base)
        tasks = {name: _storages(model) for name, model in self._models.items()}
        everything = base.copy()
        for storages in tasks.values():
            everything |= storages
        return TaskMemory(
            base=sum(base.values()),
            tasks={name: _beyond(storages, base) for name, storages in tasks.items()},
            total=sum(everything.values()),
            separate=sum(sum(storages.values()) for storages in tasks.values()),
            full_copies=len(tasks) * sum(base.values()),
        )

    def _load_base(self, directory: Path) -> PreTrainedModel:
        record, described, _ = read_record(directory)
        named = described.get("base")
        base, _ = rebuild_base(
            named if isinstance(named, dict) else {}, record.base, self._name, self._attention
        )
        return base

    def _model(self, name: str) -> PeftModel:
        if name not in self._models:
            close = difflib.get_close_matches(name, self._models, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise CheckpointError(f"there is no task {name!r}, only: {self._known()}.{hint}")
        return self._models[name]

    def _known(self) -> str:
        return ", ".join(self._models) or "none was added"


def _storages(model: nn.Module) -> Storages:
    """Of parameters, buffers, and the record of the cut."""
    tensors = (*model.parameters(), *model.buffers(), *_recorded(model))
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _recorded(model: nn.Module) -> Iterator[Tensor]:
    record = record_of(model)
    if record is not None:
        for vectors in (record.gates, record.constants, record.row_factors, record.shifts):
            yield from vectors.values()
        for pair in record.pairs.values():
            yield from pair


def _beyond(storages: Storages, base: Storages) -> int:
    return sum(size for address, size in storages.items() if address not in base)
