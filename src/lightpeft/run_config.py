"""What a whole run can be asked for: the PEFT that is put on a base, and the training."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from lightpeft.config import (
    check_at_least,
    check_choice,
    check_number,
    check_positive,
    check_seed,
    check_share,
)
from lightpeft.errors import ConfigError, did_you_mean

PeftForm = Literal["lora", "sequential", "parallel"]
LoraBias = Literal["none", "all", "lora_only"]
Site = Literal["attention", "ffn"]
Quantization = Literal["nf4", "int8"]

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The demo's base."""

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
OTHER_SCHEDULES = {
    "reduce_lr_on_plateau": "it waits for evaluations instead of following the steps",
    "greedy": "it waits for losses instead of following the steps",
    "cosine_with_min_lr": "it needs a lowest rate",
    "cosine_warmup_with_min_lr": "it needs a lowest rate",
    "warmup_stable_decay": "it needs the number of decay steps",
}
"""Schedules of transformers that no option here can describe, and why."""

POLYNOMIAL_END = 1e-7
"""The last rate of that schedule in transformers."""

DEFAULT_MAX_LENGTH = 128


@dataclass(frozen=True)
class LoraOptions:
    """The LoRA that is put on the base."""

    rank: int = 8
    """Ranks of every module before the cut."""

    alpha: int = 16
    """Scaling numerator: ΔW = alpha / rank · B A."""

    dropout: float = 0.05
    """Dropout on the modules' inputs."""

    targets: str | list[str] = "all"
    """`all`: the six linears of every layer; `query-value`: those two; or names as PEFT takes them."""

    rslora: bool = False
    """Rank-stabilised scaling, alpha / √rank."""

    dora: bool = False
    """Weight-decomposed LoRA: magnitude and direction of every weight row apart."""

    bias: LoraBias = "none"
    """Which biases of the base are trained: `none`, `all`, or those of linears with LoRA (`lora_only`)."""

    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of some modules: regular expressions of names, as in PEFT."""

    alpha_pattern: dict[str, int] = field(default_factory=dict)
    """Alphas of some modules: regular expressions of names, as in PEFT."""

    modules_to_save: list[str] = field(default_factory=list)
    """Further modules that are trained and saved whole, besides heads that the base does not have."""

    def __post_init__(self) -> None:
        check_at_least("lora.rank", self.rank, 1)
        check_at_least("lora.alpha", self.alpha, 1)
        check_share("lora.dropout", self.dropout)
        check_choice("lora.bias", self.bias, get_args(LoraBias))
        for option in ("rank_pattern", "alpha_pattern"):
            for name, value in getattr(self, option).items():
                check_at_least(f"lora.{option} of {name!r}", value, 1)


@dataclass(frozen=True)
class BottleneckOptions:
    """The bottleneck adapters that are put on the base."""

    size: int | None = None
    """Neurons of every adapter before the cut; 64 unless `reduction_factor` is given."""

    reduction_factor: float | None = None
    """In place of `size`: neurons are the model's width divided by this."""

    sites: list[Site] = field(default_factory=lambda: ["attention", "ffn"])
    """Blocks with an adapter: both (Houlsby), or `ffn` alone (Pfeiffer; He et al. with `parallel`)."""

    activation: str = "relu"
    """Non-linearity, by its transformers name."""

    dropout: float = 0.0
    """Dropout on the neurons."""

    scaling: float = 1.0
    """Factor on an adapter's output; He et al. use 4 for `parallel`."""

    layer_norm: bool = False
    """Normalise an adapter's input."""

    def __post_init__(self) -> None:
        check_share("bottleneck.dropout", self.dropout)
        check_number("bottleneck.scaling", self.scaling)
        if self.size is not None:
            check_at_least("bottleneck.size", self.size, 1)
        if self.reduction_factor is not None:
            check_positive("bottleneck.reduction_factor", self.reduction_factor)
        if self.size is not None and self.reduction_factor is not None:
            raise ConfigError("bottleneck.size and bottleneck.reduction_factor say the same; give one.")
        if not self.sites:
            raise ConfigError("bottleneck.sites is empty; give attention, ffn or both.")


@dataclass(frozen=True)
class PeftOptions:
    """What is trained: a form of PEFT with its options, or an adapter that exists already."""

    form: PeftForm = "lora"
    """`lora`, or bottleneck adapters, `sequential` or `parallel`."""

    lora: LoraOptions = field(default_factory=LoraOptions)
    """For form lora."""

    bottleneck: BottleneckOptions = field(default_factory=BottleneckOptions)
    """For forms sequential and parallel."""

    adapter: str | None = None
    """Folder or hub name of a trained PEFT adapter to go on from, whatever its form."""

    def __post_init__(self) -> None:
        check_choice("peft", self.form, get_args(PeftForm))
        idle = []
        if self.lora != LoraOptions() and (self.form != "lora" or self.adapter is not None):
            idle.append("lora.*")
        if self.bottleneck != BottleneckOptions() and (self.form == "lora" or self.adapter is not None):
            idle.append("bottleneck.*")
        if self.form != "lora" and self.adapter is not None:
            idle.append("peft")
        if idle:
            why = "the adapter brings its own" if self.adapter is not None else f"peft is {self.form}"
            raise ConfigError(f"{' and '.join(idle)} would have no effect: {why}. Leave them out.")

    @property
    def title(self) -> str:
        """In words."""
        if self.adapter is not None:
            return "continued PEFT"
        if self.form != "lora":
            return f"{self.form} adapters"
        return "DoRA" if self.lora.dora else "LoRA"


@dataclass(frozen=True)
class TrainingConfig:
    """The fine-tuning run."""

    epochs: float = 3.0
    """Passes over the training data; estimation steps count."""

    max_steps: int | None = None
    """Optimizer steps instead of epochs."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""

    schedule: str = "linear"
    """Learning-rate schedule, by its transformers name."""

    warmup_steps: int = 0
    """Optimizer steps of warm-up."""

    batch_size: int = 32
    """Examples per step and device."""

    group_by_length: bool = True
    """Put texts of similar length into a batch: less padding, faster steps. Packed rows are equally long."""

    gradient_accumulation: int = 1
    """Batches per optimizer step."""

    max_length: int | None = None
    """Tokens per example; longer ones are truncated. By default 128, or what the base has positions for."""

    packing: bool = False
    """Language modelling: join the texts, EOS tokens between them, and split them into rows of `max_length`
    tokens, instead of padding one text a row."""

    max_grad_norm: float = 1.0
    """Gradient clipping."""

    weight_decay: float = 0.0
    """Of AdamW."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Mixed precision of the forward pass; weights stay as loaded."""

    quantization: Quantization | None = None
    """Keep the frozen base in 4 bits (nf4) or 8 (int8) a weight, by bitsandbytes; LoRA only (QLoRA)."""

    seed: int = 0
    """Seed of data order, dropout, PEFT modules and new heads."""

    eval_steps: int | None = None
    """Evaluate every so many steps; by default once an epoch."""

    save_steps: int | None = None
    """Write a checkpoint to resume from every so many steps; by default none."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation"):
            check_at_least(f"training.{name}", getattr(self, name), 1)
        for name in ("max_length", "max_steps", "eval_steps", "save_steps"):
            if getattr(self, name) is not None:
                check_at_least(f"training.{name}", getattr(self, name), 1)
        for name in ("epochs", "learning_rate"):
            check_positive(f"training.{name}", getattr(self, name))
        for name in ("max_grad_norm", "weight_decay"):
            check_number(f"training.{name}", getattr(self, name))
        check_seed("training.seed", self.seed)
        check_choice("training.precision", self.precision, ("float32", "bfloat16", "float16"))
        if self.quantization is not None:
            check_choice("training.quantization", self.quantization, get_args(Quantization))
        self._check_schedule()

    def _check_schedule(self) -> None:
        check_at_least("training.warmup_steps", self.warmup_steps, 0)
        if self.schedule not in SCHEDULES:
            why = OTHER_SCHEDULES.get(self.schedule)
            found = (
                f"is unknown.{did_you_mean(self.schedule, SCHEDULES)}"
                if why is None
                else f"cannot be used: {why}."
            )
            raise ConfigError(
                f"training.schedule {self.schedule!r} {found} Choose one of {', '.join(SCHEDULES)}."
            )
        if self.schedule == "polynomial" and self.learning_rate <= POLYNOMIAL_END:
            raise ConfigError(
                f"training.learning_rate is {self.learning_rate}, but the schedule polynomial ends at "
                f"{POLYNOMIAL_END}; give a larger rate, or another schedule."
            )
        if self.schedule == "constant" and self.warmup_steps:
            raise ConfigError(
                f"training.warmup_steps {self.warmup_steps} would have no effect with the schedule constant; "
                "use constant_with_warmup."
            )

    def check_intervals(self) -> None:
        """Refuse what would never happen within `max_steps`.

        Raises:
            ConfigError: a warm-up, evaluation or checkpoint after the last step.
        """
        if self.max_steps is None:
            return
        self.check_warmup(self.max_steps)
        for name in ("eval_steps", "save_steps"):
            if (getattr(self, name) or 0) > self.max_steps:
                raise ConfigError(
                    f"training.{name} is {getattr(self, name)}, but the run has only {self.max_steps} steps "
                    "(training.max_steps); give at most that many."
                )

    def check_warmup(self, steps: int) -> None:
        """Refuse a warm-up that a run of so many steps does not leave.

        Raises:
            ConfigError: it is as long as the run, or longer.
        """
        if self.warmup_steps and self.warmup_steps >= steps:
            raise ConfigError(
                f"training.warmup_steps is {self.warmup_steps}, but the run has only {steps} steps; warm up "
                "for fewer, or train longer."
            )

    @property
    def groups_lengths(self) -> bool:
        """Whether batches are made of rows of similar length; packed rows all are."""
        return self.group_by_length and not self.packing

    @property
    def tokens(self) -> int:
        """Tokens per example where nothing else limits them."""
        return DEFAULT_MAX_LENGTH if self.max_length is None else self.max_length

    def steps(self, rows: int, processes: int = 1) -> int:
        """Optimizer steps of a run on so many rows, as the Trainer of so many processes counts them."""
        if self.max_steps is not None:
            return self.max_steps
        batches = math.ceil(rows / (self.batch_size * processes))
        return math.ceil(self.epochs * math.ceil(batches / self.gradient_accumulation))
