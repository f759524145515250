"""Encoder-decoders through a whole run: what they write is scored, during training and afterwards alike."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.support.language import VOCABULARY, save_encoder_decoder, word_tokenizer

from lightpeft.cli.main import main
from lightpeft.errors import ConfigError
from lightpeft.run_config import TrainingConfig
from lightpeft.tasks import Evaluated, TaskError, compute_metrics_for, custom_task, find_kind, load_task
from lightpeft.tasks.metrics import with_metrics

KIND = find_kind("seq2seq-lm")
OWN = custom_task(("source", "target"), objective="seq2seq-lm")
TARGETS = {"cat": "a small tree", "dog": "the red house", "bird": "old old"}


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for split, times in (("train", 16), ("validation", 2)):
        rows = [{"source": f"the {word}", "target": target} for word, target in TARGETS.items()] * times
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_what_is_written_is_scored(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data, out = (
        save_encoder_decoder(name, tmp_path / "base"),
        write(tmp_path / "data"),
        tmp_path / "out",
    )
    quick = ["--estimation.steps", "4", "--training.max_steps", "60", "--training.batch_size", "8"]
    quick += ["--training.learning_rate", "3e-2", "--training.max_length", "16", "--lora.targets", "all"]
    task = ["--task", "own", "--data", str(data), "--objective", "seq2seq-lm"]
    assert main(["train", "--model", str(base), "--out", str(out), *task, *quick, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)["light"]["metric"]
    assert main(["evaluate", str(out), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert set(metrics) == {"rouge1", "rouge2", "rougeL", "bleu", "chrf", "main"}
    assert metrics["rougeL"] == metrics["main"] == pytest.approx(trained, abs=1e-6)
    assert metrics["rougeL"] > 0.3  # some of what was learned is written

    (tmp_path / "texts.txt").write_text("the cat\nthe dog\n\n")
    predict = ["predict", str(out), str(tmp_path / "texts.txt"), "--max-new-tokens", "8"]
    assert main(predict) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"completion"}] * 3


def test_both_texts_are_cut_and_end(tmp_path: Path) -> None:
    task = load_task(OWN, write(tmp_path / "data"))
    tokenizer = word_tokenizer(bos=False, template_eos=True)
    features = KIND.encode(task.train, tokenizer, TrainingConfig(max_length=3))
    words = {number: word for word, number in VOCABULARY.items()}
    assert [words[token] for token in features["input_ids"][0]] == ["the", "cat", "</s>"]
    assert [words[token] for token in features["labels"][0]] == ["a", "small", "</s>"]


def test_texts_are_compared_as_the_libraries_do(tmp_path: Path) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    task = load_task(OWN, write(tmp_path / "data"))
    tokenizer = word_tokenizer(bos=False)
    written = ["a small house", "the red house", "old", "a small tree", "red", "old old"]
    outputs = np.full((6, 5), -100)
    for row, ids in enumerate(tokenizer(written)["input_ids"]):
        outputs[row, : len(ids)] = ids
    tokenizer.pad_token = "<unk>"
    scores = KIND.score(with_metrics(OWN), outputs, (), task.validation, None, tokenizer)
    right = task.validation["text_pair"][:]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    means = [scorer.score(one, found)["rougeL"].fmeasure for one, found in zip(right, written, strict=True)]
    assert scores["rougeL"] == pytest.approx(np.mean(means), abs=1e-6)
    assert scores["bleu"] == pytest.approx(corpus_bleu(written, [right]).score / 100, abs=1e-6)
    assert scores["chrf"] == pytest.approx(corpus_chrf(written, [right]).score / 100, abs=1e-6)


def test_scoring_needs_the_texts() -> None:
    with pytest.raises(TaskError, match="give compute_metrics_for the split"):
        KIND.scored(OWN, Evaluated(np.zeros((1, 2)), ()))
    assert callable(compute_metrics_for(OWN))


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(
        ConfigError, match=r'sacrebleu, which is not installed: pip install "lightpeft\[writing\]"'
    ):
        KIND.metrics["bleu"](["a"], ["a"])
