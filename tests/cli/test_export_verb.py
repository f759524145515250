"""`lightpeft export`: what is written, what it says, and that what it measures is what was written."""

import json
import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import QUICK, read
from transformers import AutoTokenizer, pipeline

from lightpeft.cli.main import main


def export(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["export", *words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_merged_measures_as_the_light_checkpoint_does(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    result = export(capsys, str(finished_run), "--to", "merged", "--out", str(out), "--evaluate")
    assert result["metrics"]["main"] == pytest.approx(result["light_metrics"]["main"], abs=1e-6)
    assert {"config.json", "model.safetensors", "pruning.json", "tokenizer.json"} <= {
        file.name for file in out.iterdir()
    }
    assert result["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert main(["evaluate", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["main"] == pytest.approx(result["metrics"]["main"])


def test_predict_takes_a_merged_checkpoint(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, out = tmp_path / "texts.txt", tmp_path / "merged"
    texts.write_text("the film is not dull at all\nan awful hotel\n", encoding="utf-8")
    export(capsys, str(finished_run), "--to", "merged", "--out", str(out))
    answers = []
    for checkpoint in (finished_run, out):
        assert main(["predict", str(checkpoint), str(texts)]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [one["label"] for one in answers[0]] == [one["label"] for one in answers[1]]
    assert answers[0][0]["probability"] == pytest.approx(answers[1][0]["probability"], abs=1e-5)


def test_full_adapter_says_that_it_computes_something_else(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "full"
    words = [str(finished_run / "light"), "--to", "full-adapter", "--out", str(out)]
    assert main(["export", *words]) == 0
    said = capsys.readouterr().out
    assert "expect another accuracy" in said
    assert "--evaluate measures it" in said
    assert "as recorded: main" in said
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in out.iterdir()}
    assert not (out / "pruning.json").exists()


def test_a_uniform_run_becomes_an_ordinary_checkpoint(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    words = [
        "--model",
        str(tiny_model),
        "--out",
        str(run),
        "--budget.uniform",
        "true",
        "--budget.layers",
        "0.5",
    ]
    with caplog.at_level("INFO", logger="lightpeft"):
        assert main(["train", *words, *QUICK]) == 0
    assert "layer 0-1: heads stay, because the configuration derives the size of a head" in caplog.text
    capsys.readouterr()
    result = export(capsys, str(run), "--to", "transformers", "--out", str(out), "--evaluate")
    assert result["metrics"]["main"] == pytest.approx(result["light_metrics"]["main"], abs=1e-6)
    config = read(out / "config.json")
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["intermediate_size"]) == (
        1,
        4,
        64,
    )
    assert not (out / "pruning.json").exists()
    answers = pipeline("text-classification", model=str(out))(["the film is not dull", "an awful hotel"])
    assert {answer["label"] for answer in answers} <= {"negative", "positive"}


@pytest.mark.parametrize("to", ["torch", "onnx"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_measures_as_the_light_checkpoint_does(
    to: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = export(capsys, str(finished_run), "--to", to, "--out", str(tmp_path / "out"), "--evaluate")
    assert result["metrics"]["main"] == pytest.approx(result["light_metrics"]["main"], abs=1e-6)
    assert read(tmp_path / "out" / "signature.json")["id2label"] == {"0": "negative", "1": "positive"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("good")["input_ids"]


@pytest.mark.parametrize("to", ["merged", "full-adapter"])
def test_without_out_it_goes_beside_the_checkpoint(
    to: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run / "light", run / "light")
    assert export(capsys, str(run), "--to", to)["out"] == str(run / f"light-{to}")
    assert any(file.suffix == ".safetensors" for file in (run / f"light-{to}").iterdir())


def test_evaluate_measures_the_full_adapter(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(finished_run), "--to", "full-adapter", "--out", str(tmp_path / "full"), "--evaluate"]
    assert 0 <= export(capsys, *words)["metrics"]["main"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "merged", "--batch-size", "3"], "no effect without --evaluate"),
        (["--to", "merged", "--base", "/nowhere"], "/nowhere"),
        (["--to", "gguf", "--evaluate"], "does not run GGUF files; evaluate --to merged"),
        (["--to", "gguf"], "of class AutoModelForSequenceClassification; GGUF files are written of language"),
        (["--to", "torch", "--int8"], "int8 has no effect with --to torch"),
        (["--to", "transformers"], "has lost heads, which no checkpoint of transformers can have"),
    ],
)
def test_refusals_leave_nothing_behind(
    words: list[str], message: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished_run), "--out", str(tmp_path / "out"), *words]) in (1, 2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_folder_is_not_written_over(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for to in ("merged", "full-adapter"):
        assert main(["export", str(finished_run), "--to", to, "--out", str(tmp_path)]) == 1
        assert "Choose another folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_bottleneck_runs_from_training_to_export(
    form: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--model", str(tiny_model), "--out", str(run), "--peft", form, "--bottleneck.size", "6"]
    assert main(["train", *words, "--compare", *QUICK]) == 0
    assert f"plain {form} adapters" in capsys.readouterr().out
    assert read(run / "light" / "adapter_config.json")["form"] == form
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["main"]
    assert found == pytest.approx(read(run / "result.json")["light"]["metric"], abs=1e-6)
    assert main(["export", str(run), "--to", "merged", "--out", str(tmp_path / "merged")]) == 1
    assert "bottleneck cannot be merged" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "full-adapter", "--out", str(tmp_path / "full")]) == 0
    assert "import lightpeft" in capsys.readouterr().out
