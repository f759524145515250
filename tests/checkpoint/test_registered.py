"""Merged folders under transformers' own names, and what a loaded cut model is saved as."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.support.hub import received
from tests.support.models import assert_same, load_base, make_batch, outputs, save_base, with_lora
from tests.support.plans import random_plan, random_scores
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedModel,
    pipeline,
)

import lightpeft
from lightpeft import CheckpointError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
TEXTS = ["a b c", "d e f g h", "j"]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A light checkpoint with tokenizer and labels, the merged folder made of it, and the model in memory."""
    place = tmp_path_factory.mktemp("registered")
    base = load_base(save_base("bert", place / "base"))
    base.config.id2label, base.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    model = with_lora(base)
    lightpeft.cut(model, random_plan(model), scores=random_scores(model, gates=True, means=True))
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)})
    light = lightpeft.save(model, place / "light", tokenizer=tokenizer)
    lightpeft.export_merged(light, place / "merged")
    return SimpleNamespace(light=light, merged=place / "merged", model=model)


def assert_computes_the_same(model: torch.nn.Module, room: SimpleNamespace) -> None:
    batch = make_batch("bert")
    assert_same(outputs(model, batch), outputs(room.model, batch))


def test_auto_classes_build_the_model_of_a_merged_folder(room: SimpleNamespace) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(room.merged, dtype="auto")
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert_computes_the_same(model, room)
    assert AutoConfig.from_pretrained(room.merged).id2label == {0: "bad", 1: "good"}


def test_auto_model_gives_what_is_below_the_head(room: SimpleNamespace, tmp_path: Path) -> None:
    encoder, batch = AutoModel.from_pretrained(room.merged), make_batch("bert")
    states = outputs(room.model, batch)
    with torch.no_grad():
        found = encoder(**batch).last_hidden_state[batch["attention_mask"].bool()]
    torch.testing.assert_close(found, states[max(states)], rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="this BertModel was cut"):
        encoder.save_pretrained(tmp_path / "out")


def test_pipelines_answer_alike_by_folder_and_by_model(room: SimpleNamespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(room.light)
    by_folder = pipeline("text-classification", model=str(room.merged))(TEXTS)
    by_model = pipeline("text-classification", model=lightpeft.load(room.light), tokenizer=tokenizer)(TEXTS)
    with torch.no_grad():
        logits = room.model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    for answers in (by_folder, by_model):
        assert [one["label"] for one in answers] == [["bad", "good"][row] for row in logits.argmax(1)]
        expected = logits.softmax(1).amax(1).tolist()
        assert [one["score"] for one in answers] == pytest.approx(expected, abs=1e-5)


SAVED: dict[str, Callable[[PreTrainedModel, Path], object]] = {
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
    "of a copy": lambda model, folder: copy.deepcopy(model).save_pretrained(str(folder)),
    "twice": lambda model, folder: [model.save_pretrained(folder) for _ in range(2)],
    "of an auto class": lambda model, folder: AutoModelForSequenceClassification.from_pretrained(
        model.config._name_or_path
    ).save_pretrained(folder),
}


@pytest.mark.parametrize("way", SAVED)
def test_what_is_saved_again_is_a_merged_folder(way: str, room: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("stays")
    SAVED[way](lightpeft.load_merged(room.merged), tmp_path / "out")
    assert_computes_the_same(lightpeft.load_merged(tmp_path / "out"), room)
    assert (tmp_path / "out" / "mine.txt").read_text() == "stays"


def test_what_the_hub_gets_is_a_merged_folder(
    room: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded = received(monkeypatch, tmp_path)
    lightpeft.load_merged(room.merged).push_to_hub("somebody/something")
    assert 'lightpeft.load_merged("somebody/something")' in (uploaded / "README.md").read_text()
    assert_computes_the_same(lightpeft.load_merged(uploaded), room)


def with_new_adapter(model: PreTrainedModel) -> PreTrainedModel:
    return get_peft_model(model, with_lora_config()).get_base_model()


def with_lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="SEQ_CLS", target_modules=["query"])


REFUSED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "another head": (
        lambda merged, _: AutoModelForTokenClassification.from_pretrained(merged),
        "a model of AutoModelForSequenceClassification; AutoModelForTokenClassification would give",
    ),
    "other labels": (
        lambda merged, _: AutoModelForSequenceClassification.from_pretrained(merged, num_labels=3),
        "keeps its configuration",
    ),
    "a configuration alone": (
        lambda merged, _: AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(merged)),
        "not built from its configuration alone",
    ),
    "an option": (
        lambda merged, _: AutoModelForSequenceClassification.from_pretrained(
            merged, ignore_mismatched_sizes=True
        ),
        "without ignore_mismatched_sizes",
    ),
    "pickles": (
        lambda merged, out: lightpeft.load_merged(merged).save_pretrained(out, safe_serialization=False),
        "safetensors only",
    ),
    "with an adapter on it": (
        lambda merged, out: with_new_adapter(lightpeft.load_merged(merged)).save_pretrained(out),
        "carries an adapter",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_something_else_is_refused(what: str, room: SimpleNamespace, tmp_path: Path) -> None:
    act, message = REFUSED[what]
    with pytest.raises(CheckpointError, match=message):
        act(room.merged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def in_another_process(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    ask = f"import sys; {line}; from transformers import AutoConfig; AutoConfig.from_pretrained(sys.argv[1])"
    command = [sys.executable, "-W", "ignore", "-c", ask, str(folder)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_where_lightpeft_is_not_imported_the_error_says_what_to_do(room: SimpleNamespace) -> None:
    said = in_another_process('sys.modules["lightpeft"] = None', room.merged)
    assert said.returncode
    assert "import lightpeft first, or use lightpeft.load_merged" in said.stderr
    assert "ignore_mismatched_sizes" not in said.stderr


def test_importing_lightpeft_before_transformers_is_as_good(room: SimpleNamespace) -> None:
    said = in_another_process("import lightpeft", room.merged)
    assert not said.returncode, said.stderr


def test_adapters_on_a_merged_folder_find_it_again(room: SimpleNamespace, tmp_path: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification

    model = get_peft_model(lightpeft.load_merged(room.merged), with_lora_config())
    model.save_pretrained(str(tmp_path))
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(again, PeftModel)
    assert_computes_the_same(again, room)
