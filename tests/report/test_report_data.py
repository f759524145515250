import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.plan import Plan
from lightpeft.report import Curve, Measurement, Result, over_seeds, seed_cuts, side_by_side
from lightpeft.report.seeds import OverSeeds
from lightpeft.scores import Scores

MEASUREMENT_KEYS = [
    "metric",
    "metric_name",
    "train_step_seconds",
    "inference_seconds",
    "peak_memory_bytes",
    "encoder_parameters",
    "peft_parameters",
    "checkpoint_bytes",
    "run_seconds",
    "estimation_steps",
    "estimation_step_seconds",
    "target_measured",
]


PER_SEED = {"seed": 1, "vanilla": None, "light": 0.5, "vanilla_seconds": None, "light_seconds": None}
CUTS = {"kind": "heads", "total": 12, "cut": [4, 4], "by_all": 2}


def test_measurement_has_exactly_the_documented_keys(light: Measurement) -> None:
    assert list(light.to_dict()) == MEASUREMENT_KEYS
    assert Measurement.from_dict(light.to_dict()) == light


def test_estimation_numbers_may_be_missing(vanilla: Measurement) -> None:
    value = vanilla.to_dict()
    del value["estimation_steps"], value["estimation_step_seconds"]
    assert Measurement.from_dict(value) == vanilla
    del value["run_seconds"]
    vanilla = dataclasses.replace(vanilla, run_seconds=None)
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
        ("run_seconds", -1),
        ("inference_seconds", math.nan),
    ],
)
def test_bad_measurements_are_refused_by_name(light: Measurement, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        dataclasses.replace(light, **{key: value})
    with pytest.raises(CheckpointError, match=key):
        Measurement.from_dict(light.to_dict() | {key: value})


def test_curve_round_trip_and_refusals() -> None:
    curve = Curve("light PEFT", "loss", (10, 20), (0.5, 0.4), cut_step=10, seed=3)
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
        "seed_cuts",
    ]
    assert value["format_version"] == 2
    assert value["peft"] == "LoRA"
    assert list(value["light"]) == MEASUREMENT_KEYS
    assert value["per_seed"][0] == {
        "seed": 0,
        "vanilla": 0.91,
        "light": 0.906,
        "vanilla_seconds": 20.0,
        "light_seconds": 14.0,
    }
    assert value["curves"][1]["cut_step"] == 20
    assert Result.load(path) == result


def test_result_without_vanilla_round_trips(make_result: Callable[..., Result], tmp_path: Path) -> None:
    nothing = {"vanilla": None, "vanilla_seconds": None}
    rows = [dict(row) | nothing for row in make_result().per_seed]
    alone = make_result(kind="train", vanilla=None, per_seed=rows)
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
        "run_seconds": 0.7,
        "train_step_seconds": 0.11 / 0.2,
        "inference_seconds": 0.625,
        "peak_memory_bytes": 0.75,
        "encoder_parameters": 0.65,
        "peft_parameters": 0.22,
        "checkpoint_bytes": 0.25,
    }


def test_no_ratio_is_of_a_number_where_more_is_better(result: Result) -> None:
    assert not [name for name in result.ratios if "per_second" in name]
    assert all(ratio is not None and ratio < 1 for ratio in result.ratios.values())


def test_numbers_over_seeds(result: Result, make_result: Callable[..., Result]) -> None:
    light = result.over_seeds("light")
    assert light == OverSeeds(pytest.approx(0.908), pytest.approx(0.002 * 2**0.5))  # type: ignore[arg-type]
    assert result.change == OverSeeds(pytest.approx(-0.004), pytest.approx(0, abs=1e-9))  # type: ignore[arg-type]
    assert make_result(per_seed=()).over_seeds("light") is None
    assert over_seeds([0.5]) == OverSeeds(0.5, None)
    assert over_seeds([0.5, None]) is None


def test_what_the_plans_of_seeds_have_in_common(
    make_scores: Callable[..., Scores], planned: Callable[..., Plan]
) -> None:
    plans = [planned(make_scores()) for _ in range(3)]
    heads, neurons, modules, ranks = seed_cuts(plans)
    assert [found.kind for found in (heads, neurons, modules, ranks)] == list(plans[0].counts._fields[:4])
    for found, kind in ((heads, "heads"), (neurons, "neurons"), (modules, "modules"), (ranks, "ranks")):
        assert found.cut == tuple(getattr(plan.counts, kind).cut for plan in plans)
    kept = [frozenset(module.name for module in plan.kept_modules) for plan in plans]
    assert modules.by_all == 18 - len(frozenset.union(*kept))
    assert heads.by_chance == pytest.approx(12 * (3 / 12) ** 3)
    assert [found.by_all for found in seed_cuts(plans[:1])] == [count.cut for count in plans[0].counts[:4]]


def test_version_1_is_read_with_what_it_had(
    result: Result, make_result: Callable[..., Result], tmp_path: Path
) -> None:
    old = result.to_dict() | {"format_version": 1}
    del old["seed_cuts"]
    for name in ("vanilla", "light"):
        del old[name]["run_seconds"]
        old[name]["inference_samples_per_second"] = 1 / old[name].pop("inference_seconds")
    old["per_seed"] = [{name: row[name] for name in ("seed", "vanilla", "light")} for row in old["per_seed"]]
    old["curves"] = old["curves"][:4]
    for curve in old["curves"]:
        del curve["seed"]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(old), encoding="utf-8")
    read = Result.load(path)
    assert read.ratios == {**result.ratios, "run_seconds": None}
    assert read.over_seeds("light") == result.over_seeds("light")
    assert read.over_seeds("light_seconds") is None
    assert [curve.seed for curve in read.curves] == [0] * 4
    assert Result.from_dict(read.to_dict()) == read


@pytest.mark.parametrize(
    "changes", [{"light": 3}, {"light": {"inference_samples_per_second": 0}}, {"curves": [1]}]
)
def test_a_broken_version_1_is_refused(result: Result, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        Result.from_dict(result.to_dict() | {"format_version": 1} | changes)


def test_the_committed_demo_is_read() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    committed = Result.load(folder / "demo-minilm.json")
    assert committed.ratios["inference_seconds"] == pytest.approx(0.647, abs=1e-3)


@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_documents_show_the_committed_demo(document: str) -> None:
    root = Path(__file__).parents[2]
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(side_by_side(Result.load(root / "benchmarks" / "results" / "demo-minilm.json")))
    shown = [line.strip() for line in captured.get().splitlines()]
    written = [line.strip() for line in (root / document).read_text(encoding="utf-8").splitlines()]
    assert all(line in written for line in shown)


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
        ({"format_version": 3}, "version 3, this lightpeft reads versions 1 and 2"),
        ({"vanilla": [1]}, "vanilla is a list"),
        ({"light": {"metric": 1}}, "light lacks metric_name"),
        ({"extra": 1}, "unknown keys 'extra'"),
        ({"kind": "bench"}, "choose one of demo, train"),
        ({"curves": {}}, "curves is not a list"),
        ({"curves": [{"label": "x"}]}, "curve 0 lacks kind"),
        ({"per_seed": [{"seed": 1}]}, "give seed, vanilla, light"),
        (
            {"per_seed": [PER_SEED], "seeds": [1]},
            r"light.metric is 0.908, but its mean over the seeds is 0.5",
        ),
        (
            {"per_seed": [PER_SEED | {"light": 0.908, "light_seconds": 3}], "seeds": [1]},
            "light.run_seconds is 14.7",
        ),
        ({"seeds": [4, 5]}, r"per_seed is not of the seeds \[4, 5\]"),
        ({"seed_cuts": {}}, "seed_cuts is not a list"),
        (
            {"seed_cuts": [CUTS | {"by_all": 5}]},
            r"of 12 heads the seeds cannot cut \[4, 4\], and all of them 5",
        ),
        ({"seed_cuts": [CUTS | {"cut": []}]}, "the seeds cannot cut"),
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
