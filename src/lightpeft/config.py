"""What a user can ask for: the text under each field is its documentation and its command line help."""

import dataclasses
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args

from lightpeft.errors import ConfigError, did_you_mean
from lightpeft.score_tables import BASE_SCORES, LAYER_SCORES, MODULE_SCORES, RANK_SCORES

Scope = Literal["layer", "upper", "global"]
KVGroups = Literal["whole", "equal"]
Quantity = Literal["inference", "training", "memory", "parameters"]
Cuts = Literal["auto", "width", "depth", "mixed"]
Window = Literal["all", "second_half"]
CacheDtype = Literal["compute", "bfloat16"]
Preset = Literal["default", "paper"]
LARGEST_SEED = 2**32 - 1
SHARE_OF_RUN, LEAST_STEPS, MOST_STEPS = 0.03, 40, 200
"""What `estimation.steps` `auto` takes of a long run. How they were chosen: docs/results.md."""


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of the allowed ones.

    Raises:
        ConfigError: it is.
    """
    if value not in allowed:
        hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(allowed)}.{hint}")


def check_number(name: str, value: float) -> None:
    """Refuse what is no finite number of at least 0.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value!r}; give a number of at least 0.")


def check_share(name: str, value: float) -> None:
    """Refuse what is no share in [0, 1).

    Raises:
        ConfigError: it is.
    """
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{name} is {value!r}; give a share in [0, 1).")


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; give a whole number of at least {least}.")


def check_seed(name: str, value: int) -> None:
    """Refuse what the generators of Python, NumPy and torch do not all take as a seed.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_SEED:
        raise ConfigError(f"{name} is {value!r}; give a whole number from 0 to {LARGEST_SEED}.")


def check_positive(name: str, value: float) -> None:
    """Refuse what is no finite number above 0.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value!r}; give a number above 0.")


@dataclass(frozen=True)
class EstimationConfig:
    """How importance is estimated during the first steps of the run."""

    steps: int | Literal["auto"] = "auto"
    """Optimizer steps with gates before the cut; `auto` takes 3 % of the run's, at least 40, at most 200, and
    never more than an eighth of the run (of a run under 80 steps a third, at most 10)."""

    window: Window = "all"
    """Which of these steps the scores are of: `all`, or the `second_half`, as in the paper."""

    base_score: str = "fluctuation"
    """Score of heads and neurons: `fluctuation` (what the layer's output loses without the unit, FLAP),
    `fisher` and `taylor` of a gate, `mask` (the paper's trained gates), or the baselines `magnitude` and
    `random`."""

    module_score: str = "activation"
    """Score of PEFT modules: `activation` (the paper's ‖ΔWx‖/‖Wx‖), `taylor` or `fisher` of a module gate."""

    rank_score: str = "taylor"
    """Score of ranks: `taylor` |s_r|, `paper` |s_r|·(1/d_in + 1/d_out), which punishes wide modules, or
    `fisher`."""

    layer_score: str = "sum"
    """Score of whole layers: `sum` of the base scores in the layer, or `cosine`, 1 minus the mean cosine
    between the hidden states before and after it (ShortGPT's block influence)."""

    l1: float = 1e-4
    """λ, weight of the L1 term on trained gates (base_score `mask` only)."""

    gate_learning_rate: float | None = None
    """Learning rate of trained gates; by default the run's own at each step."""

    seed: int = 0
    """Seed of base_score `random`."""

    def __post_init__(self) -> None:
        check_choice("estimation.base_score", self.base_score, tuple(BASE_SCORES))
        check_choice("estimation.module_score", self.module_score, tuple(MODULE_SCORES))
        check_choice("estimation.rank_score", self.rank_score, tuple(RANK_SCORES))
        check_choice("estimation.layer_score", self.layer_score, tuple(LAYER_SCORES))
        if self.steps != "auto":
            check_at_least("estimation.steps", self.steps, 1)
        check_choice("estimation.window", self.window, get_args(Window))
        check_number("estimation.l1", self.l1)
        check_seed("estimation.seed", self.seed)
        if self.gate_learning_rate is not None:
            check_number("estimation.gate_learning_rate", self.gate_learning_rate)

    def in_run(self, steps: int) -> "EstimationConfig":
        """This configuration in a run of so many optimizer steps, `auto` as a number."""
        if self.steps != "auto":
            return self
        most = max(steps // 8, min(10, steps // 3))
        return dataclasses.replace(self, steps=max(1, min(auto_steps(steps), most)))

    @property
    def planned_steps(self) -> int:
        """Optimizer steps until the cut; `auto` of a run of unknown length takes the least."""
        return auto_steps(0) if self.steps == "auto" else self.steps

    @property
    def window_start(self) -> int:
        """How many of the first steps the scores leave out."""
        return self.planned_steps // 2 if self.window == "second_half" else 0


def auto_steps(available: int) -> int:
    """Estimation steps for a run, or data, of so many steps, before any cap."""
    return min(max(LEAST_STEPS, round(SHARE_OF_RUN * available)), MOST_STEPS)


@dataclass(frozen=True)
class Budget:
    """How much goes: a share per kind of unit."""

    heads: float = 1 / 3
    """Share of attention heads to cut."""

    neurons: float = 1 / 3
    """Share of FFN neurons to cut."""

    modules: float = 0.5
    """Share of PEFT modules to remove."""

    ranks: float = 0.25
    """Share of the surviving modules' ranks to remove."""

    layers: float = 0.0
    """Share of whole layers to skip, those with the lowest layer score; `heads` and `neurons` are then shares
    of what is in the others. At least one layer of each stack stays."""

    heads_scope: Scope = "layer"
    """Rank heads inside each `layer`; or inside each of the `upper` two thirds of the layers, as long as
    these lose no more than half; or over all layers together (`global`)."""

    neurons_scope: Scope = "layer"
    """The same for neurons."""

    kv_groups: KVGroups = "whole"
    """Where query heads share keys and values: cut `whole` KV groups, or an `equal` number of query heads
    from every group."""

    min_heads: int = 1
    """Heads that every layer keeps; at 0 a whole attention block may go."""

    min_neurons: int = 1
    """Neurons that every layer keeps (rounded up to `align_neurons`); at 0 a whole FFN may go."""

    align_neurons: int = 1
    """FFN widths become multiples of this number; 32, 64 or 128 suit the hardware."""

    uniform: bool = False
    """Keep equal numbers of heads and of neurons in every layer of a stack (a scope of `upper` is then
    `layer`), and cut only what the architecture's own configuration can say, so that `lightpeft export --to
    transformers` writes an ordinary checkpoint. Biases that it cannot have are not compensated
    (docs/deploy.md)."""

    frozen_layers: int | Literal["auto"] = 0
    """How many of the lowest layers (of an encoder-decoder: of the encoder) train no PEFT module after the
    cut, so that they need no backward pass; their modules go first, within the share `modules` or beyond it.
    `auto`: at most a third of the layers, as many as hold little of the module score."""

    def __post_init__(self) -> None:
        for name in ("heads", "neurons", "modules", "ranks", "layers"):
            check_share(f"budget.{name}", getattr(self, name))
        if self.frozen_layers != "auto":
            check_at_least("budget.frozen_layers", self.frozen_layers, 0)
        check_choice("budget.heads_scope", self.heads_scope, get_args(Scope))
        check_choice("budget.neurons_scope", self.neurons_scope, get_args(Scope))
        check_choice("budget.kv_groups", self.kv_groups, get_args(KVGroups))
        for name, least in (("min_heads", 0), ("min_neurons", 0), ("align_neurons", 1)):
            check_at_least(f"budget.{name}", getattr(self, name), least)
        for kind in ("heads", "neurons") if self.uniform else ():
            if getattr(self, f"{kind}_scope") == "global":
                raise ConfigError(
                    f"budget.uniform keeps as many {kind} in every layer, but budget.{kind}_scope=global "
                    "ranks them over all layers together. Set it to layer, or leave budget.uniform out."
                )


@dataclass(frozen=True)
class Target:
    """At most one share of what plain PEFT costs on this device: the uncut model with all its PEFT modules.

    The plan then loses the least score that meets it; `budget.heads`, `.neurons` and `.layers` do not count.
    """

    inference: float | None = None
    """Share of the time of a forward pass in eval mode on a batch of the run."""

    training: float | None = None
    """Share of the time of the whole run, estimation and frozen layers counted."""

    memory: float | None = None
    """Share of the peak memory of a training step after the cut."""

    parameters: float | None = None
    """Share of the parameters of the layers."""

    cuts: Cuts = "auto"
    """What may go: heads and neurons (`width`), whole layers (`depth`, which meets the target within half a
    layer), or both (`mixed`); `auto` goes by the kind of model."""

    def __post_init__(self) -> None:
        check_choice("target.cuts", self.cuts, get_args(Cuts))
        given = {name: getattr(self, name) for name in get_args(Quantity) if getattr(self, name) is not None}
        for name, share in given.items():
            if not isinstance(share, int | float) or not 0 < share <= 1:
                raise ConfigError(f"target.{name} is {share!r}; give a share in (0, 1].")
        if len(given) > 1:
            raise ConfigError(f"target has {' and '.join(given)}; give one of them.")

    @property
    def is_set(self) -> bool:
        """Whether there is one."""
        return any(getattr(self, name) is not None for name in get_args(Quantity))

    @property
    def quantity(self) -> Quantity:
        """Of what it is a share; only of a target that is set."""
        found: Quantity = next(name for name in get_args(Quantity) if getattr(self, name) is not None)
        return found

    @property
    def share(self) -> float:
        """The number; only of a target that is set."""
        return float(getattr(self, self.quantity))


REPLACED = ("heads", "neurons", "layers")
"""Shares of a budget that a target takes the place of."""


@dataclass(frozen=True)
class SurgeryConfig:
    """What happens to the function of the model at the cut."""

    fold_removed: bool = True
    """Merge the trained ΔW of removed LoRA modules and ranks into the frozen base instead of dropping it."""

    fold_gates: bool = True
    """Fold the trained gates of surviving units into the output projections' columns; off drops them."""

    compensate: bool = True
    """Add the mean contribution of cut neurons and heads to the output projections' biases (FLAP)."""

    reconstruct_rank: int = 0
    """Rank of what is added to the kept columns of output projections, so that what stays says what it can of
    what was cut beyond its mean (ridge regression on the last batches of the estimation): 32, say, where more
    than half of the neurons go. The checkpoint stores it, rank × (inputs + outputs) numbers per projection.
    It goes beyond the means, so it needs `compensate`. 0 leaves it out."""

    first_token: bool = True
    """Run the last layer, above its attention, for the first token alone, where the head reads no other."""

    def __post_init__(self) -> None:
        check_at_least("surgery.reconstruct_rank", self.reconstruct_rank, 0)
        if self.reconstruct_rank and not self.compensate:
            raise ConfigError(
                f"surgery.reconstruct_rank is {self.reconstruct_rank} and surgery.compensate off: what is "
                "reconstructed goes beyond the means, which are then left out. Turn it on, or the rank to 0."
            )


@dataclass(frozen=True)
class PrefixConfig:
    """What the layers below the lowest trained PEFT module cost after the cut."""

    frozen: bool = True
    """Run them without graph and without dropout."""

    cache: bool = True
    """Keep what they put out for each example, and pass over them when it comes again."""

    memory: float = 1.0
    """GiB of it that are kept in memory."""

    disk: float = 16.0
    """GiB of it, beyond that, in a file without a name in the run's folder."""

    dtype: CacheDtype = "compute"
    """What is kept: the very values (`compute`), or `bfloat16`, half the size and rounded."""

    def __post_init__(self) -> None:
        check_number("prefix.memory", self.memory)
        check_number("prefix.disk", self.disk)
        check_choice("prefix.dtype", self.dtype, get_args(CacheDtype))


@dataclass(frozen=True)
class LightConfig:
    """One light run: estimate, cut, go on."""

    estimation: EstimationConfig = field(default_factory=EstimationConfig)
    """How importance is estimated."""

    budget: Budget = field(
        default_factory=lambda: Budget(
            heads_scope="upper", neurons_scope="upper", align_neurons=32, frozen_layers="auto"
        )
    )
    """How much is cut. Aligned widths and lowest layers that train nothing make steps after the cut fast."""

    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    """What the cut preserves."""

    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    """How the lowest layers run after the cut."""

    target: Target = field(default_factory=Target)
    """A share of plain PEFT's cost to meet, instead of shares of heads, neurons and layers."""

    learning_rate_factor: float = 1.5
    """Multiply the learning rate after the cut: fewer ranks at the same rate move the function less."""

    restart_schedule: bool = False
    """Start optimizer and learning-rate schedule anew after the cut, as the published runs do."""

    def __post_init__(self) -> None:
        check_positive("learning_rate_factor", self.learning_rate_factor)
        shares = [name for name in REPLACED if getattr(self.budget, name) != getattr(Budget(), name)]
        if self.target.is_set and shares:
            raise ConfigError(
                f"target.{self.target.quantity} chooses how many {' and '.join(shares)} go; leave "
                f"{' and '.join(f'budget.{name}' for name in shares)} out, or the target."
            )

    @classmethod
    def preset(cls, name: Preset = "default") -> "LightConfig":
        """The `default` (best measured) or the `paper` (published procedure and ratios) configuration.

        Raises:
            ConfigError: the name is neither.
        """
        check_choice("preset", name, tuple(PRESETS))
        return PRESETS[name]

    def to_dict(self) -> dict[str, Any]:
        """This configuration as plain JSON values."""
        return dataclasses.asdict(self)


PRESETS: dict[Preset, LightConfig] = {
    "default": LightConfig(),
    "paper": LightConfig(
        estimation=EstimationConfig(
            steps=800, window="second_half", base_score="mask", module_score="activation", rank_score="paper"
        ),
        budget=Budget(modules=0.75, ranks=0.5, heads_scope="layer", neurons_scope="global"),
        surgery=SurgeryConfig(fold_removed=False, compensate=False, first_token=False),
        prefix=PrefixConfig(frozen=False),
        learning_rate_factor=1.0,
        restart_schedule=True,
    ),
}


def exact_count(share: float, total: int) -> int:
    """`share · total` rounded half up, free of binary rounding: `exact_count(1/3, 12) == 4`."""
    return int(Fraction(share).limit_denominator(10**6) * total + Fraction(1, 2))
