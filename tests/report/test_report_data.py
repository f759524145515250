import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.report import Curve, Measurement, Result

MEASUREMENT_KEYS = [
    "metric",
    "metric_name",
    "train_step_seconds",
    "inference_samples_per_second",
    "peak_memory_bytes",
    "encoder_parameters",
    "peft_parameters",
    "checkpoint_bytes",
    "estimation_steps",
    "estimation_step_seconds",
]


def test_measurement_has_exactly_the_documented_keys(light: Measurement) -> None:
    assert list(light.to_dict()) == MEASUREMENT_KEYS
    assert Measurement.from_dict(light.to_dict()) == light


def test_estimation_numbers_may_be_missing(vanilla: Measurement) -> None:
    value = vanilla.to_dict()
    del value["estimation_steps"], value["estimation_step_seconds"]
    assert Measurement.from_dict(value) == vanilla


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metric", math.nan),
        ("metric", "0.9"),
        ("metric", True),
        ("metric_name", ""),
        ("train_step_seconds", -0.1),
        ("train_step_seconds", math.inf),
        ("peak_memory_bytes", 1.5),
        ("peft_parameters", -1),
        ("estimation_steps", 2.0),
        ("estimation_step_seconds", "fast"),
    ],
)
def test_bad_measurements_are_refused_by_name(light: Measurement, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        dataclasses.replace(light, **{key: value})
    with pytest.raises(CheckpointError, match=key):
        Measurement.from_dict(light.to_dict() | {key: value})


def test_curve_round_trip_and_refusals() -> None:
    curve = Curve("light PEFT", "loss", (10, 20), (0.5, 0.4), cut_step=10)
    assert Curve.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve
    with pytest.raises(ConfigError, match="2 steps and 1 values"):
        Curve("a", "loss", (1, 2), (0.5,))
    with pytest.raises(ConfigError, match="choose one of loss, metric"):
        Curve("a", "speed", (1,), (0.5,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="finite"):
        Curve("a", "loss", (1,), (math.nan,))
    with pytest.raises(CheckpointError, match="lacks values"):
        Curve.from_dict({"label": "a", "kind": "loss", "steps": [1]})


def test_result_file_has_the_documented_layout(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result.save(path)
    value = json.loads(path.read_text(encoding="utf-8"))
    assert list(value) == [
        "format_version",
        "kind",
        "title",
        "vanilla",
        "light",
        "ratios",
        "seeds",
        "per_seed",
        "curves",
        "environment",
        "config",
        "command",
        "peft",
    ]
    assert value["format_version"] == 1
    assert value["peft"] == "LoRA"
    assert list(value["light"]) == MEASUREMENT_KEYS
    assert value["per_seed"][0] == {"seed": 0, "vanilla": 0.91, "light": 0.906}
    assert value["curves"][1]["cut_step"] == 20
    assert Result.load(path) == result


def test_result_without_vanilla_round_trips(make_result: Callable[..., Result], tmp_path: Path) -> None:
    alone = make_result(kind="train", vanilla=None, per_seed=({"seed": 0, "vanilla": None, "light": 0.9},))
    alone.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == alone
    assert set(alone.ratios.values()) == {None}


def test_the_form_of_peft_is_kept_and_may_be_missing(make_result: Callable[..., Result]) -> None:
    dora = make_result(peft="DoRA")
    assert Result.from_dict(dora.to_dict()).plain == "plain DoRA"
    value = dora.to_dict()
    del value["peft"]
    assert Result.from_dict(value) == dataclasses.replace(dora, peft="LoRA")
    with pytest.raises(CheckpointError, match="peft"):
        Result.from_dict(dora.to_dict() | {"peft": ""})


def test_ratios_are_light_over_vanilla(result: Result) -> None:
    assert result.ratios == {
        "metric": 0.908 / 0.912,
        "train_step_seconds": 0.11 / 0.2,
        "inference_samples_per_second": 1.6,
        "peak_memory_bytes": 0.75,
        "encoder_parameters": 0.65,
        "peft_parameters": 0.22,
        "checkpoint_bytes": 0.25,
        "inference_seconds": 0.625,
    }


def test_a_zero_below_gives_no_ratio(make_result: Callable[..., Result], vanilla: Measurement) -> None:
    result = make_result(vanilla=dataclasses.replace(vanilla, peft_parameters=0))
    assert result.ratios["peft_parameters"] is None


def test_config_is_kept_as_json(make_result: Callable[..., Result]) -> None:
    config = {"places": ("query", "key")}
    result = make_result(config=config)
    config["places"] = ()
    assert result.config == {"places": ["query", "key"]}
    with pytest.raises(ConfigError, match="environment holds something that JSON cannot"):
        make_result(environment={"path": Path("x")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "version 2, this lightpeft reads version 1"),
        ({"vanilla": [1]}, "vanilla is a list"),
        ({"light": {"metric": 1}}, "light lacks metric_name"),
        ({"extra": 1}, "unknown keys 'extra'"),
        ({"kind": "bench"}, "choose one of demo, train"),
        ({"curves": {}}, "curves is not a list"),
        ({"curves": [{"label": "x"}]}, "curve 0 lacks kind"),
        ({"per_seed": [{"seed": 1}]}, "give seed, vanilla and light"),
        ({"seeds": [-1]}, "a seed"),
        ({"config": []}, "config is a list"),
        ({"command": None}, "command is a NoneType"),
    ],
)
def test_bad_files_are_refused(result: Result, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result.to_dict() | changes), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        Result.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["format_version", "vanilla", "light", "ratios", "config"])
def test_missing_keys_are_named(result: Result, key: str) -> None:
    value = result.to_dict()
    del value[key]
    with pytest.raises(CheckpointError, match="version None" if key == "format_version" else key):
        Result.from_dict(value)


def test_two_metrics_are_not_compared(make_result: Callable[..., Result], vanilla: Measurement) -> None:
    with pytest.raises(ConfigError, match="'f1', light by 'accuracy'"):
        make_result(vanilla=dataclasses.replace(vanilla, metric_name="f1"))
