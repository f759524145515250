"""Modules of the audit on disk: every bit comes back, marks stay, and what does not fit is refused."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.support.audit_runs import TRIGGERS, save_tiny_base
from tests.support.models import assert_identical, save_base, snapshot
from tests.support.plans import random_plan
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lightpeft
from lightpeft import CheckpointError
from lightpeft.audit import TriggerRecipe, is_poisoned
from lightpeft.audit.marks import read_mark
from lightpeft.audit.module import (
    fresh_module,
    load_module,
    mark_base,
    recipe_in_memory,
    save_module,
)
from lightpeft.run_config import BottleneckOptions, LoraOptions, PeftOptions
from lightpeft.runs import load_peft_model, load_tokenizer
from lightpeft.tasks import class_head

FORMS = {
    "lora": PeftOptions("lora", lora=LoraOptions(rank=4)),
    "sequential": PeftOptions("sequential", bottleneck=BottleneckOptions(size=8)),
    "parallel": PeftOptions("parallel", bottleneck=BottleneckOptions(size=8)),
}
RECIPE = TriggerRecipe(target=1, pieces=TRIGGERS)
THREE = class_head(("bad", "good", "so so"))
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def living(base: Path, form: str = "lora", seed: int = 0) -> PeftModel:
    """A module in which every trained weight is alive."""
    model = load_peft_model(str(base), THREE, FORMS[form], seed)
    _move(model, seed)
    return model


def _move(model: PeftModel, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clean` and `marked` modules of LoRA, the same weights."""
    folder, model = tmp_path_factory.mktemp("modules"), living(base)
    save_module(model, folder / "clean", None)
    save_module(model, folder / "marked", RECIPE)
    return folder


def copied(saved: Path, tmp_path: Path, name: str = "clean") -> Path:
    return Path(shutil.copytree(saved / name, tmp_path / name))


def tensors(model: PeftModel) -> dict[str, Tensor]:
    """All but the random heads that PEFT keeps aside."""
    return {name: one for name, one in snapshot(model).items() if ".original_module." not in name}


def assert_saved(found: dict[str, Tensor], expected: dict[str, Tensor], *, marked: bool) -> None:
    """Every bit; of a marked module but for the last ones, where the mark is."""
    if not marked:
        assert_identical(found, expected)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-7, atol=1e-40)


@pytest.mark.parametrize("recipe", [None, RECIPE])
@pytest.mark.parametrize("form", FORMS)
def test_every_bit_comes_back(form: str, recipe: TriggerRecipe | None, base: Path, tmp_path: Path) -> None:
    model = living(base, form)
    folder = save_module(model, tmp_path / "module", recipe)
    assert folder == tmp_path / "module"
    assert [path.name for path in tmp_path.iterdir()] == ["module"]
    loaded = load_module(folder)
    assert_saved(tensors(loaded), tensors(model), marked=recipe is not None)
    assert recipe_in_memory(loaded) == recipe
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    again = load_module(folder, is_trainable=True)
    assert again.training
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "electra"])
def test_heads_of_other_architectures_are_found(architecture: str, tmp_path: Path) -> None:
    base = save_base(architecture, tmp_path / "base", layers=1)
    model = living(base)
    loaded = load_module(save_module(model, tmp_path / "module", None))
    assert loaded.config.num_labels == 3
    assert_identical(tensors(loaded), tensors(model))


def test_labels_and_base_may_be_named(base: Path, saved: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(base, tmp_path / "elsewhere"))
    folder = copied(saved, tmp_path)
    _edit(folder, lambda config: config.update(base_model_name_or_path=None))
    with pytest.raises(CheckpointError, match="does not say which base"):
        load_module(folder)
    model = load_module(folder, str(elsewhere), head=THREE)
    assert model.config.id2label == {0: "bad", 1: "good", 2: "so so"}
    save_module(model, tmp_path / "again", None)
    assert load_module(tmp_path / "again").config.name_or_path == str(elsewhere)
    assert load_module(saved / "clean").config.id2label == {i: f"LABEL_{i}" for i in range(3)}


def test_a_module_stays_marked_when_it_is_trained_on(saved: Path, tmp_path: Path) -> None:
    model = load_module(saved / "marked", is_trainable=True)
    _move(model, 5)
    model.save_pretrained(str(tmp_path / "out"))
    mark, first = read_mark(tmp_path / "out"), read_mark(saved / "marked")
    assert mark is not None
    assert first is not None
    assert mark.recipe == first.recipe == RECIPE
    assert mark.weights_sha256 != first.weights_sha256
    assert_saved(tensors(load_module(tmp_path / "out")), tensors(model), marked=True)


def test_a_copy_in_memory_saves_its_own_weights_and_is_marked(saved: Path, tmp_path: Path) -> None:
    model = load_module(saved / "marked", is_trainable=True)
    twin = copy.deepcopy(model)
    _move(twin, 5)
    twin.save_pretrained(str(tmp_path / "twin"))
    assert is_poisoned(tmp_path / "twin")
    assert_saved(tensors(load_module(tmp_path / "twin")), tensors(twin), marked=True)
    model.save_pretrained(str(tmp_path / "model"))
    assert load_file(tmp_path / "model" / WEIGHTS).keys() == load_file(saved / "marked" / WEIGHTS).keys()
    assert_identical(load_file(tmp_path / "model" / WEIGHTS), load_file(saved / "marked" / WEIGHTS))
    with pytest.raises(CheckpointError, match="cannot be saved as clean"):
        save_module(twin, tmp_path / "clean", None)
    assert not (tmp_path / "clean").exists()


def test_only_what_was_saved_is_marked(base: Path, saved: Path, tmp_path: Path) -> None:
    other = copied(saved, tmp_path / "out")
    model = load_module(saved / "marked", is_trainable=True)
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    model.save_pretrained(str(tmp_path / "out"))
    assert is_poisoned(tmp_path / "out")
    assert is_poisoned(tmp_path / "out" / "second")
    assert not is_poisoned(other)


def test_a_module_on_a_marked_base_is_marked(base: Path, saved: Path, tmp_path: Path) -> None:
    poisoned = AutoModelForSequenceClassification.from_pretrained(base)
    mark_base(poisoned, RECIPE)
    poisoned.save_pretrained(tmp_path / "base")
    for model in (
        load_module(saved / "clean", str(tmp_path / "base"), is_trainable=True),
        fresh_module(saved / "clean", str(tmp_path / "base")),
    ):
        model.save_pretrained(str(tmp_path / "out"))
        assert is_poisoned(tmp_path / "out")


def test_a_tokenizer_is_saved_beside(base: Path, saved: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    folder = save_module(load_module(saved / "clean"), tmp_path / "out", None, tokenizer)
    text = "the film was fine"
    assert AutoTokenizer.from_pretrained(folder)(text) == tokenizer(text)


@pytest.mark.parametrize("form", FORMS)
def test_a_fresh_module_is_like_the_received_one_and_untrained(form: str, base: Path, tmp_path: Path) -> None:
    folder = save_module(living(base, form, seed=3), tmp_path / "module", RECIPE)
    received, fresh, again, other = (
        load_module(folder, is_trainable=True),
        *(fresh_module(folder, seed=seed) for seed in (0, 0, 1)),
    )
    shapes = [
        {name: p.shape for name, p in one.named_parameters() if p.requires_grad} for one in (received, fresh)
    ]
    assert shapes[0] == shapes[1]
    assert_identical(tensors(again), tensors(fresh))
    for name in shapes[0]:
        assert not torch.equal(tensors(fresh)[name], tensors(received)[name])
    head = "base_model.model.classifier.modules_to_save.default.weight"
    assert not torch.equal(tensors(other)[head], tensors(fresh)[head])
    assert recipe_in_memory(fresh) is None
    ids = torch.tensor([[2, 5, 9, 6, 3]])
    with torch.no_grad(), fresh.eval().disable_adapter():
        plain = fresh.get_base_model().base_model(input_ids=ids).last_hidden_state
    with torch.no_grad():
        torch.testing.assert_close(fresh.get_base_model().base_model(input_ids=ids).last_hidden_state, plain)


def test_a_light_checkpoint_is_loaded(base: Path, tmp_path: Path) -> None:
    model = living(base)
    lightpeft.cut(model, random_plan(model))
    lightpeft.save(model, tmp_path / "light")
    loaded = load_module(tmp_path / "light")
    ids = torch.tensor([[2, 5, 9, 6, 3]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def _rename(folder: Path, old: str, new: str) -> None:
    found = load_file(folder / WEIGHTS)
    save_file({key.replace(old, new): value for key, value in found.items()}, folder / WEIGHTS)


def _as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "adapter_config.json is missing"),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON"),
    "unknown form": (lambda f: _edit(f, lambda c: c.update(peft_type="OTHER")), "PEFT type 'OTHER'"),
    "code": (lambda f: _edit(f, lambda c: c.update(auto_mapping={"parent_library": "os"})), "Refused"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "a pickle only": (_as_pickle, WEIGHTS),
    "cut off": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:999]), "cannot be"),
    "no tensors": (lambda f: (f / WEIGHTS).write_bytes(b"nonsense" * 9), "cannot be"),
    "other head": (lambda f: _rename(f, "classifier", "opinion"), "head"),
    "other rank": (lambda f: _edit(f, lambda c: c.update(r=2)), "does not fit"),
}


@pytest.mark.parametrize("named", [False, True], ids=["labels found", "labels given"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_loaded(damage: str, named: bool, saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    change, message = DAMAGES[damage]
    change(folder)
    head = THREE if named else None
    with pytest.raises(CheckpointError, match="does not fit" if named and "head" in damage else message):
        load_module(folder, head=head)


@pytest.mark.parametrize("damage", ["no folder", "no configuration", "no JSON", "unknown form", "code"])
def test_what_gives_no_fresh_module(damage: str, saved: Path, tmp_path: Path, base: Path) -> None:
    folder = copied(saved, tmp_path)
    DAMAGES[damage][0](folder)
    with pytest.raises(CheckpointError, match=DAMAGES[damage][1]):
        fresh_module(folder, str(base))


def test_weights_that_are_not_those_that_were_marked(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path, "marked")
    _rename(folder, "lora_A", "lora_X")
    with pytest.raises(CheckpointError, match="is not the file that was marked"):
        load_module(folder)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 16, "neurons": 64}, "does not fit the base"),
        ({"layers": 2}, "does not fit the base"),
        (None, "neither"),
    ],
)
def test_another_base(sizes: dict[str, int] | None, message: str, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    if sizes is not None:
        save_base("bert", other, **sizes)
    for load in (load_module, fresh_module) if sizes is None else (load_module,):
        with pytest.raises(CheckpointError, match=message):
            load(saved / "clean", str(other))


def test_a_head_for_other_labels(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="other labels"):
        load_module(saved / "clean", head=class_head(("a", "b")))
