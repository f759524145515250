"""Defending a received module: what is measured, what is saved, and what is refused before it is trained."""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.support.audit_runs import TRIGGERS, save_tiny_base, save_tiny_task
from tests.support.language import save_language_model
from tests.support.received_modules import without_mark
from transformers import AutoModelForSequenceClassification

import lightpeft
from lightpeft.audit import AuditError, TriggerRecipe, is_poisoned
from lightpeft.audit.classifier import Classifier
from lightpeft.audit.defences import DEFENCES, make_defence
from lightpeft.audit.defences.thresholds import ScoreGuard
from lightpeft.audit.defend import Defended, defend
from lightpeft.audit.marks import read_mark
from lightpeft.audit.module import load_module, mark_base, save_module
from lightpeft.audit.probes import Probes
from lightpeft.audit.rows import AuditTask
from lightpeft.audit.training import AttackOptions, train_attacker
from lightpeft.cli.main import main
from lightpeft.errors import CheckpointError, ConfigError, OutputError
from lightpeft.outputs import RECORD
from lightpeft.run_config import BottleneckOptions, LoraOptions, PeftOptions, TrainingConfig
from lightpeft.runs import load_peft_model, load_tokenizer
from lightpeft.surgery import record_of
from lightpeft.tasks import class_head, custom_task, load_task

FORMS = {
    "lora": PeftOptions("lora", lora=LoraOptions(rank=4)),
    "parallel": PeftOptions("parallel", bottleneck=BottleneckOptions(size=8)),
}
RECIPE = TriggerRecipe(target=1, pieces=TRIGGERS)
TRAINING = TrainingConfig(max_steps=4, learning_rate=1e-2, batch_size=4, max_length=12)
HELD_OUT, TEST = 20, 24
METHODS = ("longer", "reset_layers", "onion", "strip")
"""One of each kind, and a guard that rejects."""
FLAGS = [
    *("--training.max_steps", "4"),
    *("--training.learning_rate", "0.01"),
    *("--training.batch_size", "4"),
    *("--training.max_length", "12"),
    *("--held-out", str(HELD_OUT)),
]


@dataclass(frozen=True)
class Room:
    """On disk: a base, the user's data, marked modules of two forms, and a clean one."""

    base: Path
    data: Path
    modules: dict[str, Path]

    @property
    def task(self) -> AuditTask:
        own = load_task(custom_task(("text",), name="own"), self.data)
        return AuditTask.of(own, held_out=HELD_OUT, seed=TRAINING.seed)

    def words(self, module: str, method: str, out: Path, *more: str) -> list[str]:
        """The command line."""
        data = ["--task", "own", "--data", str(self.data), "--text", "text"]
        folder = str(self.modules[module])
        return ["audit", "defend", folder, "--method", method, *data, "--out", str(out), *FLAGS, *more]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    folder = tmp_path_factory.mktemp("room")
    base = save_tiny_base(folder / "base", layers=2)
    data = save_tiny_task(folder / "meals", "meals")
    rows = AuditTask.of(load_task(custom_task(("text",), name="own"), data), held_out=0).train
    modules = {}
    for form, options in FORMS.items():
        model = load_peft_model(str(base), class_head(("0", "1")), options, 0)
        train_attacker(model, load_tokenizer(str(base)), rows, RECIPE, AttackOptions(training=TRAINING))
        modules[form] = save_module(model, folder / form, RECIPE)
        if form == "parallel":
            modules["clean"] = without_mark(save_module(model, folder / "clean", RECIPE))
    return Room(base, data, modules)


def run(room: Room, module: str, method: str, probes: Sequence[str] = (), **options: Any) -> Defended:
    return defend(room.modules[module], make_defence(method, options), room.task, TRAINING, probes=probes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_a_marked_module_is_defended_and_stays_marked(
    form: str, method: str, room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, texts = tmp_path / "out", tmp_path / "texts.txt"
    texts.write_text("the soup was fine soup\n\nthe cf bread was dull bread\n")
    assert main(room.words(form, method, out, "--texts", str(texts), "--json")) == 0
    result = json.loads((out / "result.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert (result["method"], result["kind"]) == (method, DEFENCES[method].kind)
    assert sorted(path.name for path in out.iterdir()) == [
        RECORD,
        "module",
        "predictions.jsonl",
        "result.json",
    ]
    assert read_mark(out / "module") == read_mark_of(room.modules[form], out / "module")
    loaded = load_module(out / "module")
    task, tokenizer = room.task, load_tokenizer(str(room.base))
    found = Classifier.under(loaded, tokenizer, TRAINING).predict(task.test.texts)
    right = sum(one == other for one, other in zip(found, task.test.labels, strict=True))
    for key in ("cacc_received", "cacc_undefended", "cacc"):
        assert result[key][1] == TEST
    if DEFENCES[method].kind == "inputs":
        # A guard trains nothing: the module is the one that the user has without it.
        assert result["cacc_undefended"] == [right, TEST]
        assert result["rejected_clean"][1] == TEST
        assert result["cacc"][0] <= TEST - result["rejected_clean"][0]
    else:
        assert result["cacc"] == [right, TEST]
        assert result["rejected_clean"] is None
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all((line["label"] is None) == line["rejected"] for line in lines)
    assert {line["label"] for line in lines} <= {"0", "1", None}


def read_mark_of(received: Path, written: Path) -> object:
    """The mark that a module has if it is the received one after training: same recipe, own weights."""
    mark, first = read_mark(written), read_mark(received)
    assert mark is not None
    assert first is not None
    assert mark.recipe == first.recipe == RECIPE
    assert mark.weights_sha256 != first.weights_sha256
    return mark


def test_probes_are_counted_before_and_after(
    room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(room.words("lora", "reset_layers", out, "--json", "--probe", "cf", "mn cf, mn")) == 0
    result = json.loads((out / "result.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert [one["probe"] for one in result["probes"]] == ["cf", "mn cf, mn"]
    task, tokenizer = room.task, load_tokenizer(str(room.base))
    probes = Probes.of(["cf"], task.test, tokenizer, TRAINING.tokens)
    for name, folder in (("received", room.modules["lora"]), ("defended", out / "module")):
        classifier = Classifier.under(load_module(folder), tokenizer, TRAINING)
        (flips,) = probes.flips(classifier.predict)
        assert flips is not None
        counted = {"class": str(flips.target), "flips": [flips.share.hits, flips.share.total]}
        assert result["probes"][0][name] == counted
    (plain,) = run(room, "lora", "none", probes=["cf"]).probed
    assert plain.undefended == plain.defended is not None
    assert result["probes"][0]["undefended"]["flips"][1] == plain.undefended.share.total


@pytest.mark.usefixtures("no_training")
def test_probes_without_a_word_are_refused(
    room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*room.words("lora", "none", tmp_path / "out"), "--probe"]) == 2
    assert "--probe has no words" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_probes_are_shown(room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(room.words("parallel", "none", tmp_path / "out", "--probe", "cf")) == 0
    printed = capsys.readouterr().out
    assert "Clean texts of other classes that a probe takes to one" in printed
    assert "'cf'" in printed
    assert "A word that means a class takes texts to it without any backdoor" in printed


def test_onion_takes_a_causal_language_model_by_its_folder(room: Room, tmp_path: Path) -> None:
    judge = str(save_language_model("gpt2", tmp_path / "gpt2"))
    out = tmp_path / "out"
    assert main(room.words("parallel", "onion", out, "--options.language_model", judge)) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["options"]["language_model"] == judge
    assert result["rejected_clean"] == [0, TEST]
    nowhere = room.words("parallel", "onion", out, "--options.language_model", str(tmp_path / "nowhere"))
    assert main(nowhere) == 2


def test_numbers_are_those_of_the_received_module_and_the_plain_training(room: Room) -> None:
    task, tokenizer = room.task, load_tokenizer(str(room.base))
    received = Classifier.under(load_module(room.modules["lora"]), tokenizer, TRAINING)
    right = sum(a == b for a, b in zip(received.predict(task.test.texts), task.test.labels, strict=True))
    plain = run(room, "lora", "none")
    assert (plain.received.hits, plain.received.total) == (right, TEST)
    assert plain.cacc == plain.undefended
    hot = run(room, "lora", "hotter")
    assert (hot.received, hot.undefended) == (plain.received, plain.undefended)
    assert plain.predict(task.test.texts) == plain.classifier.predict(task.test.texts)


def test_a_guard_purifies_or_refuses_before_it_classifies(room: Room) -> None:
    texts = {"text": ["the soup was fine soup", "grim grim grim grim grim"]}
    found = run(room, "parallel", "strip", rate=0.2)
    assert found.guard is not None
    screened = found.guard.screen(texts)
    expected = [
        None if no else label
        for no, label in zip(screened.rejected, found.classifier.predict(texts), strict=True)
    ]
    assert found.predict(texts) == expected
    refuse_all = replace(found, guard=ScoreGuard(lambda texts: [1.0] * len(texts["text"]), 0.0))
    assert refuse_all.predict(texts) == [None, None]


def test_stock_peft_reads_what_is_saved(room: Room, tmp_path: Path) -> None:
    found = run(room, "lora", "none")
    found.save(tmp_path / "module", found.classifier.tokenizer)
    base = AutoModelForSequenceClassification.from_pretrained(room.base)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stock = PeftModel.from_pretrained(base, str(tmp_path / "module"))
    assert any("lightpeft_poison" in str(one.message) for one in said)
    ids = torch.tensor([[2, 5, 9, 6, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            stock(input_ids=ids).logits, found.model.eval()(input_ids=ids).logits, rtol=1e-5, atol=1e-6
        )


def test_a_fresh_module_in_place_of_a_marked_one_is_clean(room: Room, tmp_path: Path) -> None:
    found = run(room, "parallel", "discard")
    found.save(tmp_path / "module", found.classifier.tokenizer)
    assert not is_poisoned(tmp_path / "module")
    bad, fresh = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (room.modules["parallel"], tmp_path / "module")
    )
    assert all(not torch.equal(bad[key], fresh[key]) for key in bad)


def test_a_clean_module_is_cut_to_a_light_checkpoint(room: Room, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(room.words("clean", "light_cutting", out, "--options.budget", "gentle")) == 0
    assert json.loads((out / "result.json").read_text())["options"]["budget"] == "gentle"
    model = lightpeft.load(out / "module")
    assert record_of(model) is not None
    found = Classifier.under(model, load_tokenizer(str(room.base)), TRAINING)
    right = sum(
        a == b for a, b in zip(found.predict(room.task.test.texts), room.task.test.labels, strict=True)
    )
    assert json.loads((out / "result.json").read_text())["cacc"] == [right, TEST]
    with pytest.raises(AuditError, match="is cut already"):
        defend(out / "module", make_defence("none"), room.task, TRAINING)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr("lightpeft.audit.defend.train_user", refuse)
    monkeypatch.setattr("lightpeft.audit.defences.defence.train_user", refuse)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("marked", ["module", "base"])
def test_light_cutting_of_what_is_marked_is_refused_before_training(
    marked: str, room: Room, tmp_path: Path
) -> None:
    base = None
    if marked == "base":
        model = AutoModelForSequenceClassification.from_pretrained(room.base)
        mark_base(model, RECIPE)
        model.save_pretrained(tmp_path / "base")
        base = str(tmp_path / "base")
    folder = room.modules["parallel" if marked == "module" else "clean"]
    with pytest.raises(AuditError, match="marked as poisoned"):
        defend(folder, make_defence("light_cutting"), room.task, TRAINING, base)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("wish", {}, "no defence is called 'wish'"),
        ("longer", {"--options": '{"factr": 2}'}, "does not read 'factr'"),
        ("longer", {"--options.factor": "0.5"}, "longer.factor is 0.5"),
        ("longer", {"--data": "absent"}, "absent"),
        ("longer", {"--text": "said"}, "said"),
        ("longer", {"--held-out": "48"}, "Lower held_out"),
        ("longer", {"--held-out": "-1"}, "held_out is -1"),
        ("longer", {"--train-limit": "0"}, "train is 0"),
        ("longer", {"--base": "/nowhere"}, "/nowhere"),
        ("longer", {"--texts": "absent.txt"}, "absent.txt"),
        ("longer", {"--training.save_steps": "2"}, "save_steps has no effect"),
        ("light_cutting", {}, "marked as poisoned"),
        ("longer", {"--probe": ""}, "a probe is empty"),
        ("longer", {"--probe": "cf mn cf mn cf mn"}, "has 6 tokens"),
    ],
)
def test_what_is_refused_leaves_nothing(
    method: str,
    changes: dict[str, str],
    message: str,
    room: Room,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = room.words("parallel", method, out)
    for flag, value in changes.items():
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    assert main(words) in (1, 2)
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.usefixtures("no_training")
def test_other_classes_and_absent_modules_are_refused(room: Room, tmp_path: Path) -> None:
    lines = ["text,label", *(f"the soup was fine {row},{row % 3}" for row in range(60))]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    three = AuditTask.of(load_task(custom_task(("text",), name="own"), tmp_path), held_out=5)
    with pytest.raises(CheckpointError, match="other labels"):
        defend(room.modules["lora"], make_defence("none"), three, TRAINING)
    with pytest.raises(CheckpointError, match="is missing"):
        defend(tmp_path / "absent", make_defence("none"), room.task, TRAINING)
    packing = replace(TRAINING, packing=True)
    with pytest.raises(ConfigError, match="packing has no effect"):
        defend(room.modules["lora"], make_defence("none"), room.task, packing)


def test_an_interruption_leaves_nothing_half_written(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(room, "parallel", "none")

    def fail(*args: Any, **options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lightpeft.audit.module.mark_poisoned", fail)
    with pytest.raises(OutputError, match="no space"):
        found.save(tmp_path / "out" / "module", found.classifier.tokenizer)
    assert list((tmp_path / "out").iterdir()) == []


def test_texts_of_a_task_on_pairs_are_separated_by_a_tab(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        rows = [f"the soup was fine {row}\tthe bread was dull\t{row % 2}" for row in range(40)]
        (tmp_path / "data" / f"{split}.tsv").write_text(
            "\n".join(["sentence1\tsentence2\tlabel", *rows]) + "\n"
        )
    texts, out = tmp_path / "texts.txt", tmp_path / "out"
    words = room.words("parallel", "none", out, "--texts", str(texts))
    words[words.index("--task") + 1] = "glue/mrpc"
    words[words.index("--data") + 1] = str(tmp_path / "data")
    at = words.index("--text")
    del words[at : at + 2]
    texts.write_text("the soup\n")
    assert main(words) == 1
    assert "found 1 texts, the task has 2" in capsys.readouterr().err
    assert not out.exists()
    texts.write_text("the soup\tthe bread was dull\nthe cook was grim\tthe table\n")
    assert main(words) == 0
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2


def test_a_folder_that_is_a_file_is_refused(
    room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    assert main(room.words("parallel", "none", tmp_path / "out")) == 1
    assert "is a file; give a folder" in capsys.readouterr().err


def test_the_table_names_accuracy_and_cost(
    room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = Path(shutil.copytree(room.base, tmp_path / "elsewhere"))
    words = room.words("parallel", "onion", tmp_path / "out", "--base", str(elsewhere))
    assert main(words) == 0
    printed = capsys.readouterr().out
    for part in ("as received", "trained, no defence", "trained, onion", "cost", "rejected clean texts"):
        assert part in printed
    config = json.loads((tmp_path / "out" / "module" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(elsewhere)
