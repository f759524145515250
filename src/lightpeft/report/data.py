"""The numbers of a run and their file, `result.json`."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.files import read_json, save_json
from lightpeft.outputs import Output
from lightpeft.report.fields import (
    build,
    check_choice,
    check_count,
    check_number,
    check_text,
    optional,
    plain_json,
    required,
    take,
)
from lightpeft.report.seeds import OverSeeds, SeedCuts, SeedMetrics, SeedNumber, check_seed, over_seeds
from lightpeft.report.versions import upgraded

FORMAT_VERSION = 2
CurveKind = Literal["loss", "metric"]
ResultKind = Literal["demo", "train"]

RATIO_NAMES = (
    "metric",
    "run_seconds",
    "train_step_seconds",
    "inference_seconds",
    "peak_memory_bytes",
    "encoder_parameters",
    "peft_parameters",
    "checkpoint_bytes",
)
"""The numbers of which `Result.ratios` holds light over vanilla: of all but the metric, less is better."""

_COUNTS = ("peak_memory_bytes", "encoder_parameters", "peft_parameters", "checkpoint_bytes")


@dataclass(frozen=True)
class Measurement:
    """One method's numbers: metric and whole run as means over seeds, the rest of the first seed's model."""

    metric: float
    metric_name: str
    train_step_seconds: float
    """Seconds per optimizer step; for light PEFT, after the cut."""

    inference_seconds: float
    """Seconds per sample, in batches."""

    peak_memory_bytes: int
    encoder_parameters: int
    """Parameters of all encoder layers (embeddings and heads on top are not counted)."""

    peft_parameters: int
    checkpoint_bytes: int
    """Bytes of what is stored per task."""

    run_seconds: float | None = None
    """Wall-clock seconds of a whole training: estimation, cut and evaluations included. None: not known."""

    estimation_steps: int | None = None
    """Optimizer steps before the cut, light PEFT only."""

    estimation_step_seconds: float | None = None

    target_measured: float | None = None
    """What came of a target, as share of plain PEFT's cost, light PEFT only."""

    def __post_init__(self) -> None:
        check_number("metric", self.metric)
        check_text("metric_name", self.metric_name)
        for name in ("train_step_seconds", "inference_seconds"):
            check_number(name, getattr(self, name), least=0)
        for name in _COUNTS:
            check_count(name, getattr(self, name))
        if self.estimation_steps is not None:
            check_count("estimation_steps", self.estimation_steps)
        for name in ("run_seconds", "estimation_step_seconds", "target_measured"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), least=0)

    def to_dict(self) -> dict[str, Any]:
        """These numbers as JSON values, under the fields' names."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Any, where: str = "the measurement") -> "Measurement":
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: missing or unknown key, or a value of the wrong kind.
        """
        return build(cls, take(value, where, *required(cls), optional_keys=optional(cls)), where)


@dataclass(frozen=True)
class Curve:
    """Loss or metric over optimizer steps, of one method (and seed)."""

    label: str
    kind: CurveKind
    steps: tuple[int, ...]
    values: tuple[float, ...]
    cut_step: int | None = None
    """Optimizer step after which the model was cut; None where nothing was."""

    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "values", tuple(self.values))
        check_text("label", self.label)
        check_choice("kind", self.kind, get_args(CurveKind))
        if len(self.steps) != len(self.values):
            raise ConfigError(
                f"the curve {self.label!r} has {len(self.steps)} steps and {len(self.values)} "
                "values; give one value per step."
            )
        for step in self.steps:
            check_count("a step", step)
        for value in self.values:
            check_number("a value", value)
        for name in ("cut_step", "seed"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """This curve as JSON values."""
        return dataclasses.asdict(self) | {"steps": list(self.steps), "values": list(self.values)}

    @classmethod
    def from_dict(cls, value: Any, where: str = "the curve") -> "Curve":
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: missing or unknown key, or a value of the wrong kind.
        """
        return build(cls, take(value, where, *required(cls), optional_keys=optional(cls)), where)


@dataclass(frozen=True)
class Result:
    """What a run reached, beside vanilla PEFT where that was run too: the content of `result.json`."""

    kind: ResultKind
    title: str
    light: Measurement
    vanilla: Measurement | None = None
    seeds: tuple[int, ...] = ()
    per_seed: tuple[SeedMetrics, ...] = ()
    curves: tuple[Curve, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    peft: str = "LoRA"
    """The form of PEFT, in words."""

    seed_cuts: tuple[SeedCuts, ...] = ()
    """What the seeds' plans have in common, for each kind of unit; empty where it was not recorded."""

    def __post_init__(self) -> None:
        for name in ("seeds", "per_seed", "curves", "seed_cuts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("environment", "config"):
            object.__setattr__(self, name, plain_json(name, getattr(self, name)))
        check_choice("kind", self.kind, get_args(ResultKind))
        check_text("title", self.title)
        check_text("peft", self.peft)
        if not isinstance(self.command, str):
            raise ConfigError(f"command is a {type(self.command).__name__}; give a text.")
        if self.vanilla is not None and self.vanilla.metric_name != self.light.metric_name:
            raise ConfigError(
                f"vanilla was measured by {self.vanilla.metric_name!r}, light by "
                f"{self.light.metric_name!r}; compare one metric."
            )
        for seed in self.seeds:
            check_count("a seed", seed)
        for row in self.per_seed:
            check_seed(row)
        if self.per_seed:
            self._check_means()

    @property
    def plain(self) -> str:
        """What light PEFT is compared with, in words."""
        return f"plain {self.peft}"

    @property
    def ratios(self) -> dict[str, float | None]:
        """Light over vanilla for `RATIO_NAMES`; None where a number is not known or vanilla's is 0."""
        ratios: dict[str, float | None] = {}
        for name in RATIO_NAMES:
            before = None if self.vanilla is None else getattr(self.vanilla, name)
            ratios[name] = _ratio(getattr(self.light, name), before)
        return ratios

    def over_seeds(self, number: SeedNumber) -> OverSeeds | None:
        """Mean and spread of a number over the seeds; None where a seed lacks it."""
        return over_seeds([row[number] for row in self.per_seed])

    @property
    def change(self) -> OverSeeds | None:
        """The metric's change from vanilla to light with the same seed, over the seeds."""
        pairs = [(row["vanilla"], row["light"]) for row in self.per_seed]
        return over_seeds([None if before is None else after - before for before, after in pairs])

    def to_dict(self) -> dict[str, Any]:
        """The layout of `result.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "title": self.title,
            "vanilla": None if self.vanilla is None else self.vanilla.to_dict(),
            "light": self.light.to_dict(),
            "ratios": self.ratios,
            "seeds": list(self.seeds),
            "per_seed": [dict(row) for row in self.per_seed],
            "curves": [curve.to_dict() for curve in self.curves],
            "environment": self.environment,
            "config": self.config,
            "command": self.command,
            "peft": self.peft,
            "seed_cuts": [cuts.to_dict() for cuts in self.seed_cuts],
        }

    @classmethod
    def from_dict(cls, value: Any, where: str = "the result") -> "Result":
        """Read what `to_dict` wrote, or version 1 of it; `ratios` are computed anew.

        Raises:
            CheckpointError: unknown version, missing or unknown key, or a value of the wrong kind.
        """
        value = upgraded(value)
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{where} has version {version!r}, this lightpeft reads versions 1 and {FORMAT_VERSION}."
            )
        later = ("peft", "seed_cuts")
        names = (name for name in (*required(cls), *optional(cls)) if name not in later)
        parts = take(value, where, "format_version", "ratios", *names, optional_keys=later)
        del parts["format_version"], parts["ratios"]
        for name in ("seeds", "per_seed", "curves", "seed_cuts"):
            if not isinstance(parts.setdefault(name, []), list):
                raise CheckpointError(f"{where}: {name} is not a list.")
        parts["light"] = Measurement.from_dict(parts["light"], f"{where}: light")
        if parts["vanilla"] is not None:
            parts["vanilla"] = Measurement.from_dict(parts["vanilla"], f"{where}: vanilla")
        parts["curves"] = [
            Curve.from_dict(curve, f"{where}: curve {index}") for index, curve in enumerate(parts["curves"])
        ]
        parts["seed_cuts"] = [SeedCuts.from_dict(cuts, f"{where}: seed_cuts") for cuts in parts["seed_cuts"]]
        return build(cls, parts, where)

    def save(self, path: Path) -> None:
        """Write as `result.json`, all or nothing."""
        save_json(path, self.to_dict(), Output.RESULT)

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing, not JSON, unknown version, or see `from_dict`.
        """
        return cls.from_dict(read_json(path), str(path))

    def _check_means(self) -> None:
        """The two methods' numbers and the seeds' must tell the same."""
        if tuple(row["seed"] for row in self.per_seed) != self.seeds:
            raise ConfigError(f"per_seed is not of the seeds {list(self.seeds)}.")
        for method, measured in (("light", self.light), ("vanilla", self.vanilla)):
            for number, mean in ((method, "metric"), (f"{method}_seconds", "run_seconds")):
                found = over_seeds([row[number] for row in self.per_seed])  # type: ignore[literal-required]
                stated = None if measured is None else getattr(measured, mean)
                if found and stated and not math.isclose(found.mean, stated, rel_tol=1e-6, abs_tol=1e-9):
                    raise ConfigError(
                        f"{method}.{mean} is {stated!r}, but its mean over the seeds is {found.mean!r}."
                    )


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
