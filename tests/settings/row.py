"""What a row of the table says, and the run that its behaviours are asked of."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import lightpeft
from lightpeft import EstimationConfig, LightCallback, LightConfig, LightPeftError, LightTrainer
from lightpeft.surgery import record_of
from tests.settings.kinds import BERT, Example, Kind

STEPS, ESTIMATION = 8, 3
_NOT_OURS = ("problem_type", "use_cache")
"""What transformers' losses and its Trainer write into a model's configuration."""

LIGHT = LightConfig(
    estimation=EstimationConfig(steps=ESTIMATION),
    budget=lightpeft.Budget(align_neurons=8, frozen_layers="auto"),
)


def lora(kind: Kind, base: PreTrainedModel, **options: Any) -> LoraConfig:
    """LoRA on every linear of every layer."""
    plain = {"r": 4, "lora_alpha": 8, "target_modules": list(kind.targets), "task_type": kind.task_type}
    return LoraConfig(**(plain | options))


def as_it_is(model: Any) -> Any:
    """Change nothing."""
    return model


@dataclass(frozen=True)
class Row:
    """One setting, and what is promised of it."""

    name: str
    kind: Kind = BERT

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """TrainingArguments, over those of a short run."""

    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the Trainer; a function is called with the model first."""

    base: Mapping[str, Any] = field(default_factory=dict)
    """What is passed to from_pretrained, over what the kind passes."""

    lora: Mapping[str, Any] = field(default_factory=dict)
    """Options of LoraConfig, over those of the room."""

    peft: Callable[[Kind, PreTrainedModel], PeftConfig] | None = None
    """Another form of PEFT."""

    light: LightConfig = LIGHT

    before: Callable[[PreTrainedModel], PreTrainedModel] = as_it_is
    """What the user does to the base before PEFT."""

    wrapped: Callable[[PeftModel], Any] = as_it_is
    """What the user does to the model before training."""

    after: Callable[[PeftModel], Any] = as_it_is
    """What the user does to the model between training and saving."""

    run: Callable[["Setting"], nn.Module] | None = None
    """Trains and cuts; a plain Trainer with the callback unless given."""

    save: Callable[["Setting", nn.Module], Path] | None = None
    """Saves; `lightpeft.save` unless given."""

    load: Callable[["Setting", Path], nn.Module] | None = None
    """Loads; `lightpeft.load` of the folder alone, also in another process, unless given."""

    autocast: bool = False
    """Whether logits are asked for under bf16 autocast, without which such a model does not run."""

    tolerance: float = 0.0
    """Largest difference of a logit after loading, relative to the largest logit."""

    resume: tuple[int, ...] = ()
    """Steps whose checkpoints are resumed from; the cut is after step 3."""

    scheduled: bool = False
    """Whether the rates of its steps are compared with those of a plain run."""

    refusal: str = ""
    """A piece of the error that is promised instead."""

    warns: tuple[str, ...] = ()
    """Warnings of libraries that this setting brings, as filters of pytest."""

    def __str__(self) -> str:
        return self.name


@dataclass
class Owned:
    """One object of the user's, and what it was when it was handed over."""

    name: str
    value: Any
    then: Any


class Setting:
    """A row in a folder of its own."""

    def __init__(self, row: Row, base: Path, folder: Path) -> None:
        self.row, self.base, self.folder = row, base, folder
        self.owned: list[Owned] = []
        self.whole = 0
        self.rates: list[float] = []
        self.trainer: Any = None

    def own(self, name: str, value: Any) -> Any:
        """Note `value`, which must be the same after the run."""
        self.owned.append(Owned(name, value, frozen(value)))
        return value

    def model(self) -> PeftModel:
        """A fresh model of the row, always the same one."""
        row = self.row
        base = row.before(row.kind.load_base(self.base, **row.base))
        config = row.peft(row.kind, base) if row.peft else lora(row.kind, base, **row.lora)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = get_peft_model(base, config)
            assert isinstance(model, PeftModel)
            row.wrapped(model)
        # PEFT itself completes the configuration while wrapping, so it is noted after that.
        self.own("the PEFT configuration", config)
        self.own("the model's configuration", base.config)
        self.whole = count(model)
        return model

    def arguments(self, kind: type = TrainingArguments, run: str = "run", **more: Any) -> Any:
        """Arguments of a short, quiet run on the CPU."""
        plain: dict[str, Any] = {
            "output_dir": str(self.folder / run),
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 5e-3,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 7,
        }
        return self.own("the training arguments", kind(**(plain | dict(self.row.arguments) | more)))

    def data(self) -> dict[str, Any]:
        """A Trainer's data sets."""
        kind = self.row.kind
        return {
            "train_dataset": self.own("the training data", kind.examples()),
            "eval_dataset": self.own("the evaluation data", kind.examples(6, seed=50)),
        }

    def train(self, model: PeftModel | None = None, kind: type = Trainer, **more: Any) -> Any:
        """A Trainer of the row after its run; `more` are arguments of `train`."""
        self.trainer = self.make_trainer(model or self.model(), kind)
        self.trainer.train(**more)
        return self.trainer

    def make_trainer(self, model: PeftModel, kind: type = Trainer, **options: Any) -> Any:
        """A Trainer of the row, with its callback unless it is a LightTrainer."""
        if issubclass(kind, LightTrainer):
            options.setdefault("light", self.row.light)
        else:
            options.setdefault("callbacks", [LightCallback(self.row.light)])
        more = {key: value(model) if callable(value) else value for key, value in self.row.trainer.items()}
        callbacks = [*options.pop("callbacks", []), *more.pop("callbacks", []), Rates(self.rates)]
        if "args" not in options:
            options["args"] = self.arguments()
        return kind(model=model, callbacks=callbacks, **(self.data() | options | more))


class Rates(TrainerCallback):
    """Notes the learning rate of each step."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Before a step: what it is taken with."""
        self.rates.append(float(kwargs["optimizer"].param_groups[0]["lr"]))


def count(model: nn.Module) -> int:
    """Parameters of the model."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass
class Result:
    """What a row's run left."""

    setting: Setting
    error: LightPeftError | None = None
    model: Any = None
    saved: Path = Path()
    logits: Example = field(default_factory=dict)
    weights: Example = field(default_factory=dict)
    size: int = 0

    @property
    def row(self) -> Row:
        """The row itself."""
        return self.setting.row

    @property
    def done(self) -> "Result":
        """This result, if the run got through."""
        if self.error is not None:
            raise self.error
        return self


def result_of(row: Row, base: Path, folder: Path) -> Result:
    """Train, cut and save as the row says. A refusal is a result too."""
    setting = Setting(row, base, folder)
    result = Result(setting)
    torch.manual_seed(0)
    try:
        model = row.run(setting) if row.run else setting.train().model
        row.after(model)
        result.model, result.size = model, count(model)
        result.logits, result.weights = logits(row, model), weights(model)
        result.saved = row.save(setting, model) if row.save else lightpeft.save(model, folder / "light")
    except LightPeftError as error:
        result.error = error
    setting.trainer = None
    return result


@torch.no_grad()
def logits(row: Row, model: Any) -> Example:
    """What the model computes on the kind's probe. Asked below accelerate's wrapper, which rounds."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=row.autocast):
        found = model.base_model(**row.kind.probe())
    return {key: value.clone() for key, value in found.items() if key.endswith("logits")}


def weights(model: nn.Module) -> Example:
    """Everything that the run made: what PEFT keeps aside of random heads is no part of it."""
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if ".original_module." not in name
    }


def plan_of(model: nn.Module) -> lightpeft.Plan:
    """The plan that the model was cut by."""
    record = record_of(model)
    assert record is not None
    return record.plan


def frozen(value: Any) -> Any:
    """A copy of what an object of the user's says."""
    if hasattr(value, "backend_tokenizer"):
        return value.backend_tokenizer.to_str(), copy.deepcopy(value.special_tokens_map)
    if hasattr(value, "to_dict") and not hasattr(value, "column_names"):
        return {key: copy.deepcopy(one) for key, one in value.to_dict().items() if key not in _NOT_OURS}
    return copy.deepcopy(list(value))


def same(one: Any, other: Any) -> bool:
    """Whether two frozen values are equal, tensors in them too."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
