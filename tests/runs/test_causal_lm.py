"""Language models through a whole run: the exact loss, the light checkpoint, and writing with the cache."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.language import (
    EOS,
    POSITIONS,
    VOCABULARY,
    save_language_model,
    sentences,
    word_tokenizer,
    write_pairs,
    write_texts,
)
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertConfig, BertModel

import lightpeft
from lightpeft.anatomy import find_anatomy
from lightpeft.checkpoint import read_record
from lightpeft.cli.main import main
from lightpeft.config import Budget, EstimationConfig, LightConfig
from lightpeft.errors import AnatomyError, ConfigError
from lightpeft.report import Result
from lightpeft.run_config import LoraOptions, PeftOptions, TrainingConfig
from lightpeft.runs import (
    evaluate_model,
    fit,
    generate_texts,
    load_peft_model,
    load_tokenizer,
    make_setting,
)
from lightpeft.tasks import TaskData, custom_task, load_task

NAMES = ("llama", "gpt2")
NONE = None
TRAINING = TrainingConfig(max_steps=10, batch_size=8, max_length=16, learning_rate=1e-2)
LIGHT = LightConfig(
    estimation=EstimationConfig(steps=4), budget=Budget(heads=0.5, neurons=0.5, modules=0.25, ranks=0.25)
)
QUICK = [
    *("--objective", "causal-lm"),
    *("--estimation.steps", "4"),
    *("--training.max_steps", "10"),
    *("--training.batch_size", "8"),
    *("--training.max_length", "16"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_language_model(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"), sentences(80), sentences(30, seed=1))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), sentences(80), sentences(30, seed=1))


def texts_task(folder: Path) -> TaskData:
    return load_task(custom_task(("text",), objective="causal-lm"), folder)


def pairs_task(folder: Path) -> TaskData:
    return load_task(custom_task(("prompt", "completion"), objective="causal-lm"), folder)


def one_by_one(model: PeftModel, rows: list[tuple[list[int], int]]) -> float:
    """The mean loss per token, of unpadded texts of which all but the first `prompt` tokens count."""
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for ids, prompt in rows:
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
            first = max(prompt, 1)
            wanted = torch.tensor(ids[first:])
            total += float(cross_entropy(logits[first - 1 : -1], wanted, reduction="sum"))
            count += len(wanted)
    return total / count


def greedy_without_cache(model: PeftModel, ids: list[int], tokens: int, end: int) -> list[int]:
    """The likeliest next token again and again, each from the whole text anew."""
    found: list[int] = []
    with torch.no_grad():
        while len(found) < tokens and end not in found:
            logits = model(input_ids=torch.tensor([ids + found]), use_cache=False).logits
            found.append(int(logits[0, -1].argmax()))
    return found


@pytest.fixture(scope="module", params=NAMES)
def finished(
    request: pytest.FixtureRequest,
    models: dict[str, Path],
    texts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A light run beside a plain one on text files: packed for gpt2, padded for llama."""
    out = tmp_path_factory.mktemp("run") / "out"
    words = ["train", "--model", str(models[request.param]), "--task", "mine", "--data", str(texts)]
    packing = ["--training.packing", "true"] if request.param == "gpt2" else []
    assert main([*words, "--out", str(out), "--compare", *QUICK, *packing]) == 0
    return out


def test_a_run_writes_checkpoints_result_and_page(finished: Path) -> None:
    result = Result.load(finished / "result.json")
    assert result.vanilla is not None
    assert result.light.metric_name == "loss"
    assert 0.5 < result.light.metric < 5
    assert result.ratios["encoder_parameters"] < 0.85
    assert result.light.inference_seconds > 0
    assert {curve.kind for curve in result.curves} == {"loss", "metric"}
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Validation loss" in page
    assert "points" not in page
    assert (finished / "plain" / "adapter_model.safetensors").is_file()


def test_evaluate_repeats_the_loss(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = Result.load(finished / "result.json").light.metric
    for batch in ("8", "3"):
        capsys.readouterr()
        assert main(["evaluate", str(finished), "--json", "--batch-size", batch]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["main"] == found["loss"] == pytest.approx(expected, abs=2e-6)
        assert found["perplexity"] == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_load_gives_the_same_logits(name: str, models: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    setting = make_setting(
        str(models[name]), texts_task(texts), TRAINING, PeftOptions(lora=LoraOptions(rank=4))
    )
    model = fit(setting, LIGHT, tmp_path / "run", progress=False).model
    assert find_anatomy(model).layers[0].heads < 4
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / name))
    assert not read_record(tmp_path / name)[2]
    batch = {"input_ids": torch.randint(3, len(VOCABULARY), (2, 9))}
    model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_predict_writes_what_the_cut_model_writes_without_a_cache(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["the cat", "a small red bird sees the old", "dog"]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["predict", str(finished), str(file), "--max-new-tokens", "12"]) == 0
    answers = [json.loads(line)["completion"] for line in capsys.readouterr().out.splitlines()]
    model = lightpeft.load(finished / "light")
    tokenizer = AutoTokenizer.from_pretrained(finished / "light")
    for prompt, answer in zip(prompts, answers, strict=True):
        found = greedy_without_cache(model, tokenizer(prompt)["input_ids"], 12, tokenizer.eos_token_id)
        assert answer == tokenizer.decode(found, skip_special_tokens=True)
    assert any(answers)


def test_a_long_prompt_is_refused_before_anything_is_written(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("the cat\n" + "the " * (POSITIONS - 8) + "\n", encoding="utf-8")
    assert main(["predict", str(finished), str(file), "--max-new-tokens", "12"]) == 2
    assert "prompt 2 has" in capsys.readouterr().err
    assert main(["predict", str(finished), str(file), "--max-new-tokens", "0"]) == 2
    assert "give at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("min_heads", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_the_cache_of_a_cut_model_changes_no_token(
    name: str, min_heads: int, models: dict[str, Path], texts: Path, tmp_path: Path
) -> None:
    """Logits step by step from the cache against whole texts, with layers of unequal heads too."""
    budget = dataclasses.replace(LIGHT.budget, heads_scope="global", min_heads=min_heads)
    setting = make_setting(
        str(models[name]), texts_task(texts), TRAINING, PeftOptions(lora=LoraOptions(rank=4))
    )
    model = fit(setting, dataclasses.replace(LIGHT, budget=budget), tmp_path, progress=False).model
    model.eval()
    ids = torch.randint(3, len(VOCABULARY), (2, 12))
    cache, steps = None, []
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        for place in range(ids.shape[1]):
            outputs = model(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            steps.append(outputs.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_run_is_exact_for_padded_texts(
    name: str, models: dict[str, Path], texts: Path, tmp_path: Path
) -> None:
    task = texts_task(texts)
    setting = make_setting(str(models[name]), task, TRAINING, PeftOptions(lora=LoraOptions(rank=2)))
    outcome = fit(setting, None, tmp_path, progress=False)
    start = [1] if name == "llama" else []
    rows = [(start + words(text) + [VOCABULARY[EOS]], 0) for text in task.validation["text"]]
    assert len({len(ids) for ids, _ in rows}) > 3
    assert outcome.main == pytest.approx(one_by_one(outcome.model, rows), abs=1e-5)
    assert outcome.metrics["loss"] == outcome.main


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_run_counts_completions_alone(
    name: str, models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    task = pairs_task(pairs)
    setting = make_setting(str(models[name]), task, TRAINING, PeftOptions(lora=LoraOptions(rank=2)))
    outcome = fit(setting, LIGHT, tmp_path, progress=False)
    start = [1] if name == "llama" else []
    rows = [
        (start + words(row["text"]) + words(row["text_pair"]) + [VOCABULARY[EOS]], len(start) + 2)
        for row in task.validation
    ]
    assert outcome.main == pytest.approx(one_by_one(outcome.model, rows), abs=1e-5)
    again = evaluate_model(outcome.model, setting.tokenizer, task, TRAINING)
    assert again["main"] == pytest.approx(outcome.main, abs=2e-6)


def words(text: str) -> list[int]:
    return [VOCABULARY[word] for word in text.split()]


def test_training_learns_only_what_counts(models: dict[str, Path], pairs: Path) -> None:
    """The model's own loss of a padded batch is the loss of its completions."""
    setting = make_setting(str(models["llama"]), pairs_task(pairs), TRAINING, PeftOptions())
    model = setting.load_model().eval()
    rows = [setting.train[i] for i in range(8)]
    batch = setting.collator(rows)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    whole = [(row["input_ids"], row["labels"].count(-100)) for row in rows]
    with torch.no_grad():
        assert model(**batch).loss.item() == pytest.approx(one_by_one(model, whole), abs=1e-5)


def test_no_head_is_added_or_trained(models: dict[str, Path]) -> None:
    model = load_peft_model(str(models["llama"]), NONE, PeftOptions(), 0, "causal-lm")
    assert model.peft_config["default"].task_type == "CAUSAL_LM"
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_a_tokenizer_without_padding_pads_with_the_end(models: dict[str, Path]) -> None:
    assert word_tokenizer().pad_token is None
    assert load_tokenizer(str(models["llama"])).pad_token == EOS


def test_prompts_alone_and_together_are_continued_alike(models: dict[str, Path]) -> None:
    model = load_peft_model(str(models["llama"]), NONE, PeftOptions(), 0, "causal-lm")
    tokenizer = load_tokenizer(str(models["llama"]))
    prompts = sentences(5, seed=3)
    together = generate_texts(model, tokenizer, prompts, 10, batch_size=5)
    assert together == generate_texts(model, tokenizer, prompts, 10, batch_size=1)
    with pytest.raises(ConfigError, match="give at least 1"):
        generate_texts(model, tokenizer, prompts, 0, batch_size=1)


def test_an_encoder_cannot_learn_to_write(tmp_path: Path) -> None:
    BertModel(
        BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(AnatomyError, match="sees a text from both sides"):
        load_peft_model(str(tmp_path), NONE, PeftOptions(), 0, "causal-lm")


def test_packing_is_for_language_models(models: dict[str, Path]) -> None:
    task = load_task("demo/sentiment", sizes={"train": 20, "validation": 20})
    training = dataclasses.replace(TRAINING, packing=True)
    with pytest.raises(ConfigError, match=r"training\.packing joins texts"):
        make_setting(str(models["llama"]), task, training, PeftOptions())


def test_a_decoder_that_classifies_is_loaded_with_its_padding(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--task", "demo/sentiment", "--train-limit", "64", "--out", str(tmp_path / "out")]
    quick = [*QUICK[2:-1], "32"]
    assert main(["train", "--model", str(models["llama"]), *options, *quick]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "out"), "--json"]) == 0
    expected = Result.load(tmp_path / "out" / "result.json").light.metric
    assert json.loads(capsys.readouterr().out)["main"] == pytest.approx(expected, abs=1e-6)


def test_estimate_takes_language_models(models: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.safetensors"
    options = [*("--model", str(models["llama"])), *("--task", "mine"), *("--data", str(texts))]
    quick = [*QUICK[:4], *QUICK[6:]]
    assert main(["estimate", *options, *quick, "--out", str(out)]) == 0
    assert [len(heads) for heads in lightpeft.Scores.load(out).heads] == [4, 4]


@pytest.mark.parametrize("name", ["stories260k", "tinystories-656k"])
def test_a_trained_model_goes_on_with_its_story_after_a_cut(
    name: str, data_dir: Path, tmp_path: Path
) -> None:
    folder = data_dir / "models" / name
    if not folder.is_dir():
        pytest.skip(f"no model in {folder}")
    prompts = ["Once upon a time, there was a", "The dog"]
    stories = [f"{start} little {thing}." for start in prompts for thing in ("cat", "bird", "boy")] * 8
    task = texts_task(write_texts(tmp_path / "data", stories, stories[:6]))
    training = dataclasses.replace(TRAINING, max_length=32, learning_rate=1e-3)
    setting = make_setting(str(folder), task, training, PeftOptions())
    model = fit(setting, LIGHT, tmp_path / "run", progress=False).model
    tokenizer = setting.tokenizer
    written = generate_texts(model, tokenizer, prompts, 16, batch_size=2)
    for prompt, answer in zip(prompts, written, strict=True):
        found = greedy_without_cache(model, tokenizer(prompt)["input_ids"], 16, tokenizer.eos_token_id)
        assert answer["completion"] == tokenizer.decode(found, skip_special_tokens=True)
        assert answer["completion"].strip()
