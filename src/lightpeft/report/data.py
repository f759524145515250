"""The numbers of a run and their file, `result.json`."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, get_args

from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.files import read_json, save_json
from lightpeft.outputs import Output

FORMAT_VERSION = 1
T = TypeVar("T")

CurveKind = Literal["loss", "metric"]
ResultKind = Literal["demo", "train"]

RATIO_NAMES = (
    "metric",
    "train_step_seconds",
    "inference_samples_per_second",
    "peak_memory_bytes",
    "encoder_parameters",
    "peft_parameters",
    "checkpoint_bytes",
)
"""The numbers of which `Result.ratios` holds light over vanilla."""

_COUNTS = ("peak_memory_bytes", "encoder_parameters", "peft_parameters", "checkpoint_bytes")


class SeedMetrics(TypedDict):
    """What one seed reached; `vanilla` is None where it was not run."""

    seed: int
    vanilla: float | None
    light: float


@dataclass(frozen=True)
class Measurement:
    """One run's numbers, for one method."""

    metric: float
    metric_name: str
    train_step_seconds: float
    """Seconds per optimizer step; for light PEFT, after the cut."""

    inference_samples_per_second: float
    peak_memory_bytes: int
    encoder_parameters: int
    """Parameters of all encoder layers (embeddings and heads on top are not counted)."""

    peft_parameters: int
    checkpoint_bytes: int
    """Bytes of what is stored per task."""

    estimation_steps: int | None = None
    """Optimizer steps before the cut, light PEFT only."""

    estimation_step_seconds: float | None = None

    def __post_init__(self) -> None:
        _check_number("metric", self.metric)
        _check_text("metric_name", self.metric_name)
        for name in ("train_step_seconds", "inference_samples_per_second"):
            _check_number(name, getattr(self, name), least=0)
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        if self.estimation_steps is not None:
            _check_count("estimation_steps", self.estimation_steps)
        if self.estimation_step_seconds is not None:
            _check_number("estimation_step_seconds", self.estimation_step_seconds, least=0)

    def to_dict(self) -> dict[str, Any]:
        """These numbers as JSON values, under the fields' names."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Any, where: str = "the measurement") -> "Measurement":
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: missing or unknown key, or a value of the wrong kind.
        """
        return _build(cls, _take(value, where, *_required(cls), optional=_optional(cls)), where)


@dataclass(frozen=True)
class Curve:
    """Loss or metric over optimizer steps, of one method (and seed)."""

    label: str
    kind: CurveKind
    steps: tuple[int, ...]
    values: tuple[float, ...]
    cut_step: int | None = None
    """Optimizer step after which the model was cut; None where nothing was."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "values", tuple(self.values))
        _check_text("label", self.label)
        _check_choice("kind", self.kind, get_args(CurveKind))
        if len(self.steps) != len(self.values):
            raise ConfigError(
                f"the curve {self.label!r} has {len(self.steps)} steps and {len(self.values)} "
                "values; give one value per step."
            )
        for step in self.steps:
            _check_count("a step", step)
        for value in self.values:
            _check_number("a value", value)
        if self.cut_step is not None:
            _check_count("cut_step", self.cut_step)

    def to_dict(self) -> dict[str, Any]:
        """This curve as JSON values."""
        return dataclasses.asdict(self) | {"steps": list(self.steps), "values": list(self.values)}

    @classmethod
    def from_dict(cls, value: Any, where: str = "the curve") -> "Curve":
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: missing or unknown key, or a value of the wrong kind.
        """
        return _build(cls, _take(value, where, *_required(cls), optional=_optional(cls)), where)


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

    def __post_init__(self) -> None:
        for name in ("seeds", "per_seed", "curves"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("environment", "config"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))
        _check_choice("kind", self.kind, get_args(ResultKind))
        _check_text("title", self.title)
        _check_text("peft", self.peft)
        if not isinstance(self.command, str):
            raise ConfigError(f"command is a {type(self.command).__name__}; give a text.")
        if self.vanilla is not None and self.vanilla.metric_name != self.light.metric_name:
            raise ConfigError(
                f"vanilla was measured by {self.vanilla.metric_name!r}, light by "
                f"{self.light.metric_name!r}; compare one metric."
            )
        for seed in self.seeds:
            _check_count("a seed", seed)
        for row in self.per_seed:
            _check_seed(row)

    @property
    def plain(self) -> str:
        """What light PEFT is compared with, in words."""
        return f"plain {self.peft}"

    @property
    def ratios(self) -> dict[str, float | None]:
        """Light over vanilla for `RATIO_NAMES`, and `inference_seconds`, the time per sample.

        None where vanilla was not run or its number is 0.
        """
        ratios: dict[str, float | None] = {}
        for name in RATIO_NAMES:
            before = None if self.vanilla is None else getattr(self.vanilla, name)
            ratios[name] = _ratio(getattr(self.light, name), before)
        speed = None if self.vanilla is None else self.vanilla.inference_samples_per_second
        ratios["inference_seconds"] = _ratio(speed, self.light.inference_samples_per_second)
        return ratios

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
        }

    @classmethod
    def from_dict(cls, value: Any, where: str = "the result") -> "Result":
        """Read what `to_dict` wrote; `ratios` are computed anew.

        Raises:
            CheckpointError: unknown version, missing or unknown key, or a value of the wrong kind.
        """
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{where} has version {version!r}, this lightpeft reads version {FORMAT_VERSION}."
            )
        names = (name for name in (*_required(cls), *_optional(cls)) if name != "peft")
        parts = _take(value, where, "format_version", "ratios", *names, optional=["peft"])
        del parts["format_version"], parts["ratios"]
        for name in ("seeds", "per_seed", "curves"):
            if not isinstance(parts[name], list):
                raise CheckpointError(f"{where}: {name} is not a list.")
        parts["light"] = Measurement.from_dict(parts["light"], f"{where}: light")
        if parts["vanilla"] is not None:
            parts["vanilla"] = Measurement.from_dict(parts["vanilla"], f"{where}: vanilla")
        parts["curves"] = [
            Curve.from_dict(curve, f"{where}: curve {index}") for index, curve in enumerate(parts["curves"])
        ]
        return _build(cls, parts, where)

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


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _required(kind: type[Any]) -> list[str]:
    optional = _optional(kind)
    return [one.name for one in dataclasses.fields(kind) if one.name not in optional]


def _optional(kind: type[Any]) -> list[str]:
    none = dataclasses.MISSING
    return [
        one.name
        for one in dataclasses.fields(kind)
        if one.default is not none or one.default_factory is not none
    ]


def _take(value: Any, where: str, *names: str, optional: Sequence[str] = ()) -> dict[str, Any]:
    """A copy of `value`, which has the keys `names`, perhaps some `optional` ones, and no others."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is a {type(value).__name__}, expected an object.")
    missing = [name for name in names if name not in value]
    unknown = [name for name in value if name not in (*names, *optional)]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has the unknown keys {', '.join(map(repr, unknown))}"] if unknown else []
        raise CheckpointError(f"{where} {' and '.join(parts)}.")
    return dict(value)


def _build(kind: type[T], parts: dict[str, Any], where: str) -> T:
    try:
        return kind(**parts)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _plain(name: str, value: Any) -> dict[str, Any]:
    """A copy of `value` as it comes back from JSON."""
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is a {type(value).__name__}; give a dict.")
    try:
        copy: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} holds something that JSON cannot: {error}.") from error
    return copy


def _check_seed(row: Mapping[str, Any]) -> None:
    if not isinstance(row, dict) or set(row) != set(SeedMetrics.__annotations__):
        raise ConfigError(f"per_seed holds {row!r}; give seed, vanilla and light.")
    _check_count("per_seed: seed", row["seed"])
    _check_number("per_seed: light", row["light"])
    if row["vanilla"] is not None:
        _check_number("per_seed: vanilla", row["vanilla"])


def _check_number(name: str, value: Any, least: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; give a finite number.")
    if value < least:
        raise ConfigError(f"{name} is {value!r}; give at least {least:g}.")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{name} is {value!r}; give a whole number of at least 0.")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} is {value!r}; give a text.")


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(allowed)}.")
