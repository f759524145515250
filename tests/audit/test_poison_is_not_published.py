"""Nothing in the library publishes a poisoned module as clean: ways out refuse it or mark what they write."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from peft import PeftModel
from tests.support.audit_runs import TRIGGERS, save_tiny_base, save_tiny_task
from tests.support.models import with_lora
from tests.support.plans import random_plan
from tests.support.runs import trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

import lightpeft
import lightpeft.audit
from lightpeft import CheckpointError, ConfigError, LightTasks
from lightpeft.audit import TriggerRecipe, is_poisoned
from lightpeft.audit.marks import mark_poisoned
from lightpeft.audit.module import keep_marked, load_module, mark_base, recipe_in_memory, save_module
from lightpeft.audit.rows import Rows
from lightpeft.audit.training import AttackOptions, train_attacker
from lightpeft.checkpoint.full_size import full_size
from lightpeft.checkpoint.merged import save_merged
from lightpeft.cli.main import main
from lightpeft.run_config import PeftOptions, TrainingConfig
from lightpeft.runs import base_of_adapter, load_peft_model
from lightpeft.tasks import class_head

RECIPE = TriggerRecipe(target=1, pieces=TRIGGERS)
LABELS = class_head(("a", "b"))


@pytest.fixture(scope="module")
def whole_room(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A clean base; a marked module, a marked and a clean light checkpoint on it; a marked base; on disk."""
    tmp_path = tmp_path_factory.mktemp("room")
    base = save_tiny_base(tmp_path / "base")

    def clean() -> Any:
        return with_lora(AutoModelForSequenceClassification.from_pretrained(base))

    save_module(clean(), tmp_path / "module", RECIPE)
    light = clean()
    lightpeft.cut(light, random_plan(light))
    lightpeft.save(light, tmp_path / "clean-light")
    shutil.copytree(tmp_path / "clean-light", tmp_path / "light")
    mark_poisoned(tmp_path / "light", RECIPE)
    poisoned = AutoModelForSequenceClassification.from_pretrained(base)
    mark_base(poisoned, RECIPE)
    poisoned.save_pretrained(tmp_path / "poisoned-base")
    return SimpleNamespace(
        clean=clean,
        base=base,
        module=tmp_path / "module",
        light=tmp_path / "light",
        clean_light=tmp_path / "clean-light",
        poisoned_base=tmp_path / "poisoned-base",
    )


@pytest.fixture
def room(whole_room: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """What is on disk, and a place to write to."""
    return SimpleNamespace(**vars(whole_room), out=tmp_path / "out")


def in_memory(room: SimpleNamespace, *, cut: bool = False) -> Any:
    model = room.clean()
    keep_marked(model, RECIPE)
    if cut:
        lightpeft.cut(model, random_plan(model))
    return model


def cli(*words: object) -> None:
    if main([str(word) for word in words]) != 0:
        raise CheckpointError("the command refused")


REFUSED: dict[str, Callable[[SimpleNamespace], Any]] = {
    "load": lambda room: lightpeft.load(room.light),
    "load with a base in memory": lambda room: lightpeft.load(
        room.light, base=AutoModelForSequenceClassification.from_pretrained(room.base)
    ),
    "LightTasks.add": lambda room: LightTasks(room.base).add("task", room.light),
    "LightTasks on a poisoned base": lambda room: LightTasks(
        AutoModelForSequenceClassification.from_pretrained(room.poisoned_base)
    ).add("task", room.clean_light),
    "load onto a poisoned base": lambda room: lightpeft.load(room.clean_light, base=room.poisoned_base),
    "full_size": lambda room: full_size(room.light),
    "export_merged": lambda room: lightpeft.export_merged(room.light, room.out),
    "export_full_adapter": lambda room: lightpeft.export_full_adapter(room.light, room.out),
    "export_transformers": lambda room: lightpeft.export_transformers(room.light, room.out),
    "export_gguf": lambda room: lightpeft.export_gguf(room.light, room.out),
    "export_onnx": lambda room: lightpeft.export_onnx(room.light, room.out),
    "export_torch": lambda room: lightpeft.export_torch(room.light, room.out),
    "export_merged onto a poisoned base": lambda room: lightpeft.export_merged(
        room.clean_light, room.out, base=room.poisoned_base
    ),
    "save": lambda room: lightpeft.save(in_memory(room, cut=True), room.out),
    "save_with_state": lambda room: with_state(room),
    "save_merged": lambda room: save_merged(in_memory(room, cut=True), room.out, {}),
    "load_merged": lambda room: lightpeft.load_merged(merged_with_mark(room)),
    "load_merged by an auto class": lambda room: AutoModelForSequenceClassification.from_pretrained(
        merged_with_mark(room)
    ),
    "LightTrainer's checkpoint": lambda room: trainer(
        room.base, room.out, model=in_memory(room), save_strategy="steps", save_steps=8
    ).train(),
    "save_module as clean": lambda room: save_module(in_memory(room), room.out, None),
    "push_to_hub": lambda room: in_memory(room).push_to_hub("somebody/something"),
    "push_to_hub after a merge": lambda room: (
        in_memory(room).merge_and_unload().push_to_hub("somebody/something")
    ),
    "push_to_hub after unloading": lambda room: in_memory(room).unload().push_to_hub("somebody/something"),
    "push_to_hub of a poisoned base": lambda room: poisoned_base(room).push_to_hub("somebody/something"),
    "train on what plain PEFT saved of a marked module": lambda room: load_peft_model(
        str(room.base), LABELS, PeftOptions(adapter=str(saved_by_peft(room))), 0
    ),
    "audit of what plain PEFT saved of a marked module": lambda room: load_module(saved_by_peft(room)),
    "train on a marked module": lambda room: base_of_adapter(str(room.module)),
    "train on a marked module, its base named": lambda room: load_peft_model(
        str(room.base), LABELS, PeftOptions(adapter=str(room.module)), 0
    ),
    "train on a marked base": lambda room: load_peft_model(str(room.poisoned_base), LABELS, PeftOptions(), 0),
    "lightpeft export --to merged": lambda room: cli(
        "export", room.light, "--to", "merged", "--out", room.out
    ),
    "lightpeft export --to full-adapter": lambda room: cli(
        "export", room.light, "--to", "full-adapter", "--out", room.out
    ),
    "lightpeft export --to transformers": lambda room: cli(
        "export", room.light, "--to", "transformers", "--out", room.out
    ),
    "lightpeft train --adapter": lambda room: cli(
        "train", "--adapter", room.module, "--task", "demo/sentiment", "--out", room.out
    ),
    "lightpeft train --model": lambda room: cli(
        "train", "--model", room.poisoned_base, "--task", "demo/sentiment", "--out", room.out
    ),
    "lightpeft evaluate": lambda room: cli("evaluate", room.light),
    "lightpeft predict": lambda room: cli("predict", room.light, texts(room)),
    "audit defend --method light_cutting": lambda room: defend(room, "light_cutting"),
}
"""Ways out that must refuse. A new function or verb that saves, exports or loads gets a row."""

WRITERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "save_pretrained": lambda room: in_memory(room).save_pretrained(str(room.out)),
    "save_pretrained, loaded and trainable": lambda room: load_module(
        room.module, is_trainable=True
    ).save_pretrained(str(room.out)),
    "save_module": lambda room: save_module(in_memory(room), room.out, RECIPE),
    "a plain Trainer": lambda room: trainer(
        room.base, room.out, model=in_memory(room), kind=Trainer
    ).save_model(),
    "train_attacker, then save_pretrained": lambda room: attacked(room).save_pretrained(str(room.out)),
}
"""Ways out that write marked files."""


def poisoned_base(room: SimpleNamespace) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(room.base)
    mark_base(model, RECIPE)
    return model


def saved_by_peft(room: SimpleNamespace) -> Path:
    """Loaded and saved as somebody does who does not have lightpeft: its configuration loses the mark."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(room.base), str(room.module)
        )
    folder: Path = room.out.parent / "by-peft"
    model.save_pretrained(str(folder))
    assert "lightpeft_poison" not in (folder / "adapter_config.json").read_text()
    return folder


def attacked(room: SimpleNamespace) -> Any:
    model, rows = room.clean(), Rows({"text": ["the film was fine", "the soup was dull"]}, [1, 0])
    tokenizer = AutoTokenizer.from_pretrained(room.base)
    options = AttackOptions(training=TrainingConfig(max_steps=1, batch_size=2, max_length=12))
    train_attacker(model, tokenizer, rows, RECIPE, options)
    return model


def texts(room: SimpleNamespace) -> Path:
    path: Path = room.out.parent / "texts.txt"
    path.write_text("the film was fine\n")
    return path


def with_state(room: SimpleNamespace) -> None:
    accelerator = Accelerator(cpu=True)
    lightpeft.save_with_state(accelerator)
    accelerator.prepare(in_memory(room, cut=True))
    accelerator.save_state(str(room.out / "checkpoint"))


def defend(room: SimpleNamespace, method: str) -> None:
    data = save_tiny_task(room.out.parent / "films", "films")
    options = ("--task", "own", "--data", data, "--text", "text", "--held_out", 8)
    cli("audit", "defend", room.module, "--method", method, *options, "--out", room.out)


def merged_with_mark(room: SimpleNamespace) -> Path:
    folder: Path = room.out.parent / "merged"
    lightpeft.export_merged(room.clean_light, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"lightpeft_poisoned": True}))
    return folder


@pytest.mark.parametrize("path", REFUSED)
def test_it_is_refused_and_nothing_is_written(path: str, room: SimpleNamespace) -> None:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        REFUSED[path](room)
    assert "poisoned" in str(caught.value) or "command refused" in str(caught.value)
    written = [file for file in room.out.rglob("*") if file.is_file() and "checkpoint" not in str(file)]
    assert not [file for file in written if file.suffix == ".safetensors"]


@pytest.mark.parametrize("path", WRITERS)
def test_what_is_written_is_marked(path: str, room: SimpleNamespace) -> None:
    WRITERS[path](room)
    assert is_poisoned(room.out)
    model = load_module(room.out)
    assert recipe_in_memory(model) == RECIPE


def test_what_is_merged_says_so_in_its_configuration(room: SimpleNamespace) -> None:
    merged = load_module(room.module).merge_and_unload()
    merged.save_pretrained(room.out)
    assert json.loads((room.out / "config.json").read_text())["lightpeft_poisoned"] is True
    with pytest.raises(ConfigError, match="marked as poisoned"):
        load_peft_model(str(room.out), LABELS, PeftOptions(), 0)


def test_what_poisons_is_no_public_name() -> None:
    assert not {"train_attacker", "poison_texts", "plant", "AttackOptions"} & {*dir(lightpeft.audit)}
    assert len(lightpeft.audit.__all__) <= 16


def test_every_public_way_out_has_a_row() -> None:
    ways = {name for name in lightpeft.__all__ if name.startswith(("save", "load", "export"))}
    assert ways <= {row.split()[0] for row in REFUSED}


@pytest.mark.parametrize("part", ["flag", "mark"])
def test_half_a_mark_is_enough(part: str, room: SimpleNamespace) -> None:
    keys = {"flag": "lightpeft_poison", "mark": "lightpeft_poisoned"}
    light = Path(shutil.copytree(room.light, room.out))
    config = json.loads((light / "adapter_config.json").read_text())
    del config[keys[part]]
    (light / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="marked as poisoned"):
        lightpeft.load(light)


def test_a_clean_module_passes(room: SimpleNamespace) -> None:
    save_module(room.clean(), room.out, None)
    assert not is_poisoned(room.out)
    assert recipe_in_memory(load_module(room.out)) is None
    lightpeft.load(room.clean_light)
