"""`bench quality`, what is measured, as a configuration: models, tasks, methods, seeds."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightpeft.config import LightConfig, check_at_least, check_choice, check_seed
from lightpeft.errors import ConfigError, did_you_mean
from lightpeft.run_config import BottleneckOptions, LoraOptions, PeftForm, PeftOptions, TrainingConfig

if TYPE_CHECKING:
    from lightpeft.bench.methods import Method
    from lightpeft.runs import Setting
    from lightpeft.tasks import TaskData, TaskSpec

C = TypeVar("C")

PLAIN = "plain"
"""The method that all others are compared with."""

RECORDED_STEPS = 1000
"""A cell records its method's light configuration for a run of so many steps: how many there are nobody knows
before data is read, and only `paper` goes by them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]*(-[A-Za-z0-9._]+)*")
"""Of models, tasks and methods: two hyphens part them in the name of a cell's file."""


@dataclass(frozen=True)
class GridModel:
    """A base of the grid."""

    model: str
    """Hub name or folder."""

    training: dict[str, Any] = field(default_factory=dict)
    """Options of the training that are its own, such as `learning_rate`."""

    peft: PeftForm = "lora"
    """`lora`, or bottleneck adapters, `sequential` or `parallel`; `plain` is then these without a cut."""

    lora: dict[str, Any] = field(default_factory=dict)
    """Options of its LoRA."""

    bottleneck: dict[str, Any] = field(default_factory=dict)
    """Options of its bottleneck adapters."""


@dataclass(frozen=True)
class GridTask:
    """A data set of the grid."""

    task: str
    """A known task, or any name with `text`."""

    data: str | None = None
    """Folder with one file a split, from `--data` on; by default the task's own source."""

    text: list[str] = field(default_factory=list)
    """Text columns of your own data."""

    label: str = "label"
    """Label column of your own data."""

    metric: str | None = None
    """The metric to judge your own data by."""

    objective: str = "sequence-classification"
    """Kind of your own data."""

    min_words: int = 0
    """Leave out training texts with fewer words."""

    train_rows: int | None = None
    """Training rows, drawn once for all methods and seeds; by default all."""

    validation_rows: int | None = None
    """Rows to judge by, drawn likewise; by default all."""

    training: dict[str, Any] = field(default_factory=dict)
    """Options of the training that are its own, such as `epochs` or `max_length`."""

    seeds: list[int] = field(default_factory=list)
    """By default the grid's."""

    models: list[str] = field(default_factory=list)
    """Only with these models of the grid; by default with all."""

    def load(self, root: Path) -> "TaskData":
        """The rows that all methods have.

        Args:
            root: folder that `data` starts from.
        """
        from lightpeft.bench.rows import select_rows
        from lightpeft.tasks import custom_task, find_kind, load_task

        columns = tuple(self.text) or find_kind(self.objective).own_text
        task: str | TaskSpec = self.task
        if columns:
            task = custom_task(columns, self.label, self.metric, name=self.task, objective=self.objective)
        rows = load_task(task, None if self.data is None else root / self.data)
        return select_rows(rows, self.min_words, self.train_rows, self.validation_rows)


@dataclass(frozen=True)
class GridMethod:
    """A way to train."""

    like: str | None = None
    """The known method that it is made of; by default the one of its own name."""

    light: dict[str, Any] = field(default_factory=dict)
    """What is changed of a light configuration, group by group, as in `{budget: {heads: 0.5}}`."""

    training: dict[str, Any] = field(default_factory=dict)
    """What is changed of the training."""

    lora: dict[str, Any] = field(default_factory=dict)
    """What is changed of the LoRA; its targets belong to the known method."""

    def method(self, name: str) -> "Method":
        """The method, with its changes of the light configuration.

        Raises:
            ConfigError: no such method, or a change that does not fit.
        """
        from lightpeft.bench.methods import KNOWN

        known = self.like or name
        check_choice(f"methods: {name}: like", known, tuple(KNOWN))
        found = KNOWN[known]
        light = found.light
        if light is None:
            if self.light:
                raise ConfigError(f"methods: {name}: {known} cuts nothing, so leave `light` out.")
            return dataclasses.replace(found, key=name)
        return dataclasses.replace(
            found, key=name, light=lambda steps: changed(light(steps), self.light, f"methods: {name}: light")
        )


@dataclass(frozen=True)
class CellKey:
    """What makes a cell this one; its file is named by it."""

    model: str
    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file, without an ending."""
        return f"{self.model}--{self.task}--{self.method}--{self.seed}"


@dataclass(frozen=True)
class QualityGrid:
    """Every model on every task by every method with every seed: one cell each.

    Raises:
        ConfigError: unknown names or options, or nothing to measure.
    """

    models: dict[str, GridModel]
    """Bases by names of your own."""

    tasks: dict[str, GridTask]
    """Data sets by names of your own."""

    methods: dict[str, GridMethod]
    """Known methods, or changes of them by names of your own; `plain` is what others are compared with."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of the trainings."""

    training: dict[str, Any] = field(default_factory=dict)
    """Options of all trainings."""

    inference_repeats: int = 5
    """How often a forward pass is timed beside plain PEFT's; 0 leaves it out."""

    def __post_init__(self) -> None:
        for group in ("models", "tasks", "methods", "seeds"):
            if not getattr(self, group):
                raise ConfigError(f"{group} is empty, so there is nothing to measure; give at least one.")
        for group in ("models", "tasks", "methods"):
            for name in getattr(self, group):
                if not _NAME.fullmatch(name):
                    raise ConfigError(
                        f"{group} has the name {name!r}; use letters, digits, dots and single hyphens."
                    )
        check_at_least("inference_repeats", self.inference_repeats, 0)
        for task in self.tasks.values():
            for model in task.models:
                check_choice("models of a task", model, tuple(self.models))
        for seed in (*self.seeds, *(seed for task in self.tasks.values() for seed in task.seeds)):
            check_seed("seeds", seed)
        for key in self.keys():
            self.record(key)

    def keys(self) -> Iterator[CellKey]:
        """All cells; task by task and seed by seed, so that a part is whole early."""
        for (model, _), (name, task) in itertools.product(self.models.items(), self.tasks.items()):
            if task.models and model not in task.models:
                continue
            for seed, method in itertools.product(task.seeds or self.seeds, self.methods):
                yield CellKey(model, name, method, seed)

    def training_of(self, key: CellKey) -> TrainingConfig:
        """The training of a cell: the grid's options, then the model's, the task's, the method's."""
        options = self.training | self.models[key.model].training | self.tasks[key.task].training
        options = options | self.methods[key.method].training
        return changed(TrainingConfig(seed=key.seed), options, f"training of {key.name}")

    def peft_of(self, key: CellKey) -> PeftOptions:
        """The PEFT of a cell, but for the targets of its LoRA."""
        model = self.models[key.model]
        lora = changed(LoraOptions(), model.lora | self.methods[key.method].lora, f"lora of {key.name}")
        bottleneck = changed(BottleneckOptions(), model.bottleneck, f"bottleneck of {key.name}")
        return PeftOptions(model.peft, lora, bottleneck)

    def setting(self, key: CellKey, task: "TaskData", models: Path | None) -> "Setting":
        """A cell as a run, but for its method.

        Args:
            models: folder in which bases are looked for first, by the last part of their names.
        """
        from lightpeft.runs import make_setting

        model = self.models[key.model].model
        if models is not None and (models / Path(model).name).is_dir():
            model = str(models / Path(model).name)
        return make_setting(model, task, self.training_of(key), self.peft_of(key))

    def record(self, key: CellKey) -> dict[str, Any]:
        """All of the grid that decides what comes out of a cell, as JSON values."""
        from lightpeft.report.fields import plain_json

        method, task = self.methods[key.method].method(key.method), self.tasks[key.task]
        light = None if method.light is None else method.light(RECORDED_STEPS).to_dict()
        training = dataclasses.asdict(self.training_of(key))
        value = {
            "model": self.models[key.model].model,
            "task": dataclasses.asdict(task) | {"training": None, "seeds": None, "models": None},
            "method": method.name,
            "light": light,
            "training": training,
            "peft": dataclasses.asdict(self.peft_of(key)),
        }
        return plain_json("the record of a cell", value)


def changed(config: C, changes: Mapping[str, Any], where: str) -> C:
    """A configuration with some options changed, of groups of options some of theirs.

    Raises:
        ConfigError: an option that it does not have, or a value that it does not take.
    """
    known = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}  # type: ignore[arg-type]
    values = {}
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"{where} has no option {name!r}.{did_you_mean(name, known)}")
        is_group = dataclasses.is_dataclass(known[name])
        if is_group and not isinstance(value, Mapping):
            raise ConfigError(f"{where}.{name} is {value!r}; give its options by name.")
        values[name] = changed(known[name], value, f"{where}.{name}") if is_group else value
    try:
        return dataclasses.replace(config, **values)  # type: ignore[type-var]
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def light_config(method: "Method", setting: "Setting") -> LightConfig | None:
    """The light configuration of a cell's run; scores that are drawn follow its seed."""
    light = method.light_config(setting)
    if light is None:
        return None
    estimation = dataclasses.replace(light.estimation, seed=setting.training.seed)
    return dataclasses.replace(light, estimation=estimation)
