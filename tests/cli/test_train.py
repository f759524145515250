"""`lightpeft train` and the verbs that use what it wrote."""

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from tests.cli.conftest import QUICK, read
from transformers import AutoModelForSequenceClassification, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

import lightpeft
from lightpeft.anatomy import find_anatomy
from lightpeft.cli.anatomy import anatomy_of
from lightpeft.cli.main import main
from lightpeft.costs import CostTable
from lightpeft.planning.prices import parameter_costs
from lightpeft.report import Result
from lightpeft.runs import Setting
from lightpeft.scores import Scores

NUMBERS = {
    "metric",
    "train_step_seconds",
    "inference_seconds",
    "run_seconds",
    "peak_memory_bytes",
    "encoder_parameters",
    "peft_parameters",
    "checkpoint_bytes",
}


def test_train_writes_checkpoints_result_scores_and_page(finished_run: Path) -> None:
    result = read(finished_run / "result.json")
    for method in ("vanilla", "light"):
        assert set(result[method]) >= NUMBERS
    assert set(result["ratios"]) >= NUMBERS
    assert result["light"]["estimation_steps"] == 4
    assert result["light"]["estimation_step_seconds"] > 0
    (row,) = result["per_seed"]
    assert row["light_seconds"] == result["light"]["run_seconds"] > 0
    assert {curve["seed"] for curve in result["curves"]} == {row["seed"]}
    assert [cuts["kind"] for cuts in result["seed_cuts"]] == ["heads", "neurons", "modules", "ranks"]
    assert result["ratios"]["encoder_parameters"] < 0.75
    assert result["ratios"]["peft_parameters"] < 0.35
    assert "torch" in result["environment"]
    assert (finished_run / "plain" / "adapter_model.safetensors").is_file()
    assert "<svg" in (finished_run / "report.html").read_text(encoding="utf-8")
    assert Scores.load(finished_run / "scores.safetensors").steps == 4


def test_the_page_of_several_seeds_shows_all_of_them(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only the first seed's two models are in memory together."""
    models: list[weakref.ref[PeftModel]] = []
    in_memory: list[int] = []
    load = Setting.load_model

    def counted(setting: Setting) -> PeftModel:
        in_memory.append(sum(model() is not None for model in models))
        loaded = load(setting)
        models.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(Setting, "load_model", counted)
    words = ["train", "--model", str(tiny_model), "--out", str(tmp_path / "out"), "--seeds", "[3,1]"]
    assert main([*words, "--compare", *QUICK]) == 0
    assert in_memory == [0, 1, 0, 0]
    result = Result.load(tmp_path / "out" / "result.json")
    assert {curve.seed for curve in result.curves} == {3, 1}
    light, plain = (result.over_seeds(method) for method in ("light_seconds", "vanilla_seconds"))
    assert light is not None
    assert plain is not None
    assert light.mean == result.light.run_seconds
    assert result.ratios["run_seconds"] == light.mean / plain.mean
    assert [len(cuts.cut) for cuts in result.seed_cuts] == [2] * 4
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for said in (
        "seeds 3, 1",
        "mean ± sd",
        "the plan of seed 3",
        "Do the seeds agree?",
        "light, mean of 2",
    ):
        assert said in page


def test_the_light_checkpoint_loads_and_has_the_reported_size(finished_run: Path) -> None:
    model = lightpeft.load(finished_run / "light")
    result = Result.load(finished_run / "result.json")
    assert lightpeft.find_anatomy(model).parameters == result.light.encoder_parameters


def test_evaluate_finds_the_metric_that_train_reported(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["main"]
    assert found == pytest.approx(Result.load(finished_run / "result.json").light.metric, abs=1e-6)


def test_a_classifier_writes_no_texts(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the film is not dull at all\n", encoding="utf-8")
    assert main(["predict", str(finished_run), str(texts), "--max-new-tokens", "3"]) == 2
    assert "leave max_new_tokens out" in capsys.readouterr().err


def test_report_writes_the_same_page_again(finished_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "again.html"
    assert main(["report", str(finished_run), "--out", str(page)]) == 0
    first = (finished_run / "report.html").read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8") == first


def test_a_yaml_file_gives_the_same_run_as_flags(
    tiny_model: Path, finished_run: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {tiny_model}\ntask: demo/sentiment\ntrain_limit: 64\nout: {tmp_path / 'out'}\n"
        "estimation:\n  steps: 4\ntraining:\n  max_steps: 10\n  batch_size: 8\n  max_length: 32\n",
        encoding="utf-8",
    )
    assert main(["train", "--config", str(config)]) == 0
    again, first = (read(folder / "light" / "pruning.json") for folder in (tmp_path / "out", finished_run))
    assert again["plan"] == first["plan"]


def test_a_preset_sets_defaults_that_flags_change(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["train", "--model", str(tiny_model), "--out", str(out), "--preset", "paper", *QUICK]) == 0
    light = read(out / "result.json")["config"]["light"]
    assert light["estimation"]["base_score"] == "mask"
    assert light["estimation"]["steps"] == 4
    assert light["budget"]["modules"] == 0.75
    assert light["restart_schedule"] is True


def test_resume_goes_on_from_a_complete_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    run = ["train", "--model", str(tiny_model), *QUICK, "--training.save_steps", "3"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*run, "--out", str(whole)]) == 0
    last = whole / "checkpoints" / "light-0" / "checkpoint-9"
    target = resumed / "checkpoints" / "light-0" / "checkpoint-9"
    target.parent.mkdir(parents=True)
    last.rename(target)
    assert main([*run, "--out", str(resumed), "--resume"]) == 0
    times = [read(folder / "result.json")["light"]["run_seconds"] for folder in (whole, resumed)]
    assert times[0] > 0
    assert times[1] is None  # only the rest was seen
    adapters = [folder / "light" / "adapter_model.safetensors" for folder in (whole, resumed)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_own_columns_train_and_evaluate(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, rows in (("train", 40), ("validation", 12)):
        lines = [f"the film is {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'}" for i in range(rows)]
        (data / f"{split}.csv").write_text("review,verdict\n" + "\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    quick = [*QUICK[4:], "--task", "mine", "--data", str(data), "--text", "[review]", "--label", "verdict"]
    assert main(["train", "--model", str(tiny_model), "--out", str(out), *quick]) == 0
    assert main(["evaluate", str(out), "--json"]) == 0
    assert (
        0
        <= json.loads(capsys.readouterr().out.split("\n", 1)[1][-400:].split("{")[-1].join(["{", ""]))["main"]
        <= 1
    )


def test_estimate_then_many_plans(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.safetensors"
    quick = [*QUICK[:6], *QUICK[8:]]
    assert main(["estimate", "--model", str(tiny_model), "--out", str(scores), *quick]) == 0
    kept = []
    for share in ("0.8", "0.6"):
        capsys.readouterr()
        base = ["plan", "--scores", str(scores), "--model", str(tiny_model), "--json"]
        assert main([*base, "--target.parameters", share]) == 0
        plan = lightpeft.Plan.from_json(capsys.readouterr().out)
        kept.append(sum(len(layer.neurons) + len(layer.heads) for layer in plan.layers))
        assert plan.evidence is not None
        assert plan.evidence.scored_steps == lightpeft.Scores.load(scores).scored_steps
    assert kept[0] > kept[1]
    capsys.readouterr()
    assert main([*base[:-1], "--target.parameters", "0.6"]) == 0
    said = capsys.readouterr().out
    assert plan.evidence.describe() in said
    assert (plan.weakness or "") in said
    plan_from_a_latency_table(base, tiny_model, tmp_path, capsys)


def plan_from_a_latency_table(
    base: list[str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table that says of parameters that they are seconds."""
    table, costs = tmp_path / "latency.json", parameter_costs(anatomy_of(str(tiny_model)))
    table.write_text(json.dumps(CostTable({}, 0.0, costs).to_dict()))
    timed = ["--target.inference", "0.7"]
    assert main([*base, *timed, "--latency", str(table)]) == 0
    plan = lightpeft.Plan.from_json(capsys.readouterr().out)
    assert plan.target is not None
    assert 0.5 < plan.target.predicted <= 0.7  # a block of neurons, or a head, of both layers is .1 to .2
    for arguments, message in (
        (timed, "target.inference needs what the model's layers cost"),
        ([*timed, "--latency", "/nowhere"], "/nowhere does not exist"),
        (["--target.training", "0.5"], "target.training is a share of a run"),
        (["--target.memory", "0.5", "--latency", str(table)], "nothing that was measured for target.memory"),
        (["--target.memory", "0.5", *timed], "target has inference and memory; give one"),
        (["--budget.heads", "0.5", *timed], "leave budget.heads out"),
    ):
        assert main([*base, *arguments]) != 0
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nonsense"], 2, "unknown verb"),
        (["train", "--model", "/nowhere", "--task", "demo/sentiment", "--out", "x"], 2, "/nowhere"),
        (["train", "--model", "m", "--task", "glue/sst3", "--out", "x"], 2, "sst2"),
        (["train", "--model", "m", "--task", "demo/sentiment", "--out", "x", "--resume"], 2, "save_steps"),
        (["train", "--model", "m", "--task", "mine", "--text", "[a]", "--out", "x"], 2, "--data"),
        (["evaluate", "/nowhere"], 2, "/nowhere"),
        (["report", "/nowhere"], 2, "/nowhere is no folder"),
        (["bench", "taste"], 2, "speed"),
        (["plan", "--scores", "/nowhere", "--model", "m"], 2, "/nowhere"),
    ],
)
def test_mistakes_end_in_one_line_that_says_what_to_do(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_too_few_steps_fail_before_training(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--model", str(tiny_model), "--out", str(tmp_path / "o"), *QUICK]
    assert main([*words, "--estimation.steps", "10"]) == 2
    assert "estimation.steps is 10" in capsys.readouterr().err
    assert not (tmp_path / "o" / "light").exists()


def test_the_log_goes_where_the_user_wants_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []

    class Notes(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            told.extend(value for name, value in logs.items() if name == "loss")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "notes", Notes)
    monkeypatch.setattr(
        sys.modules["lightpeft.runs.fit"], "get_available_reporting_integrations", lambda: ["notes"]
    )
    words = ["train", "--model", str(tiny_model), "--out", str(tmp_path / "o"), *QUICK]
    assert main([*words, "--report_to", "notes"]) == 0
    assert told


def test_help_explains_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Share of attention heads to cut" in text
    assert "Hub name or folder of the base" in text


def test_a_missing_report_package_is_said_before_training(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    options = ["--model", str(tiny_model), "--task", "demo/sentiment", "--out", str(tmp_path)]
    assert main(["train", *options]) == 2
    assert "pip install lightpeft[report]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_quantised_base_is_cut_and_evaluated_as_it_was_trained(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "out", ["--training.quantization", "nf4"]
    assert main(["train", "--model", str(tiny_model), "--out", str(out), *options, *QUICK]) == 0
    result = read(out / "result.json")
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    assert result["light"]["encoder_parameters"] < 0.75 * find_anatomy(plain).parameters
    described = read(out / "light" / "pruning.json")
    assert described["task"]["quantization"] == "nf4"
    assert "quantization_config" not in described["base"]["config"]
    capsys.readouterr()
    assert main(["evaluate", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(result["light"]["metric"])
    assert main(["export", str(out), "--to", "merged", "--out", str(tmp_path / "merged")]) == 0
    assert main(["evaluate", str(tmp_path / "merged")]) == 0


def test_quantisation_is_for_lora(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--training.quantization", "nf4", "--peft", "sequential"]
    assert main(["train", "--model", str(tiny_model), "--out", str(tmp_path / "out"), *words, *QUICK]) == 2
    assert "training.quantization nf4 is for LoRA" in capsys.readouterr().err
