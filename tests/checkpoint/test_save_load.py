"""Light checkpoints: what is in them, and that a load gives back the model that was saved."""

import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.support.models import (
    NAMES,
    ROWS,
    assert_identical,
    assert_same,
    load_base,
    make_batch,
    outputs,
    save_base,
    snapshot,
    tiny_peft,
    with_lora,
)
from tests.support.plans import random_plan, random_scores
from transformers import AutoModel, PreTrainedModel

import lightpeft
from lightpeft import CheckpointError
from lightpeft.checkpoint import is_light_checkpoint
from lightpeft.surgery import record_of


def cut_model(name: str, folder: Path, seed: int = 0, **options: object) -> PeftModel:
    model = with_lora(load_base(folder, head_seed=seed), **options)
    scores = random_scores(model, seed, gates=True, means=True)
    lightpeft.cut(model, random_plan(model, seed), scores=scores)
    return model


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_base(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_files_are_stock_ones_and_three_of_ours(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = lightpeft.save(cut_model("bert", bases["bert"]), tmp_path / "light")
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "light.safetensors",
        "lightpeft_files.json",
        "pruning.json",
        "README.md",
    }
    assert is_light_checkpoint(folder)
    assert not is_light_checkpoint(tmp_path)


def test_a_checkpoint_is_small(bases: dict[str, Path], tmp_path: Path) -> None:
    """What is stored per task is far less than the base."""
    model = cut_model("bert", bases["bert"], rank=1)
    folder = lightpeft.save(model, tmp_path / "light")
    stored = sum(t.numel() for t in load_file(folder / "light.safetensors").values())
    assert stored < sum(p.numel() for p in model.parameters()) / 2


def test_pruning_json_names_plan_base_and_versions(bases: dict[str, Path], tmp_path: Path) -> None:
    model = cut_model("bert", bases["bert"])
    metrics, task = {"accuracy": 0.5}, {"name": "sst2"}
    folder = lightpeft.save(model, tmp_path / "light", metrics=metrics, task=task)
    value = json.loads((folder / "pruning.json").read_text())
    record = record_of(model)
    assert record is not None
    assert lightpeft.Plan.from_dict(value["plan"]) == record.plan
    assert value["weights"] == record.base
    assert value["base"]["name_or_path"] == str(bases["bert"])
    assert value["lightpeft_version"] == lightpeft.__version__
    assert (value["metrics"], value["task"]) == (metrics, task)
    assert "| accuracy | 0.5 |" in (folder / "README.md").read_text()


def test_loading_gives_the_same_model(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model, batch = cut_model(name, bases[name], seed=5), make_batch(name)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert_identical(loaded.state_dict(), model.state_dict())
    assert_same(outputs(loaded, batch), outputs(model, batch))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_loaded_to_train_has_the_adapter_trainable(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model = cut_model(name, bases[name])
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"), is_trainable=True)
    assert loaded.training
    trainable = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert trainable == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_second_generation_is_the_same(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model = cut_model(name, bases[name])
    first = lightpeft.load(lightpeft.save(model, tmp_path / "one"))
    second = lightpeft.load(lightpeft.save(first, tmp_path / "two"))
    assert_identical(second.state_dict(), model.state_dict())
    for file in ("adapter_model.safetensors", "light.safetensors"):
        one, two = (load_file(tmp_path / which / file) for which in ("one", "two"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


HEADS_ON_TOP = {
    "bert": ("pooler", "classifier"),
    "roberta": ("classifier",),
    "electra": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
}


@pytest.mark.parametrize("saved_by_peft", [True, False], ids=["modules_to_save", "not"])
def test_the_head_survives_though_the_base_has_none(
    name: str, saved_by_peft: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Loading the base draws a new random head; the checkpoint must bring the old one back."""
    options = {} if saved_by_peft else {"task_type": None}
    model, batch = cut_model(name, bases[name], seed=5, **options), make_batch(name)
    assert any("modules_to_save" in key for key in model.state_dict()) == saved_by_peft
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if any(f"{part}." in key for part in HEADS_ON_TOP[name]):
                parameter.add_(torch.randn_like(parameter))
    torch.manual_seed(1234)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert_same(outputs(loaded, batch), outputs(model, batch))
    assert_identical(loaded.state_dict(), model.state_dict())


def test_labels_and_problem_type_are_kept(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    labels = {0: "bad", 1: "so so", 2: "good"}
    base = load_base(bases[name], id2label=labels, label2id={v: k for k, v in labels.items()})
    model = with_lora(base)
    lightpeft.cut(model, random_plan(model))
    config = lightpeft.load(lightpeft.save(model, tmp_path / "light")).config
    assert (config.num_labels, config.id2label) == (3, labels)
    assert config.label2id == {"bad": 0, "so so": 1, "good": 2}


def test_regression_is_kept(bases: dict[str, Path], tmp_path: Path) -> None:
    model = with_lora(load_base(bases["bert"], num_labels=1, problem_type="regression"))
    lightpeft.cut(model, random_plan(model))
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert loaded.config.problem_type == "regression"
    assert outputs(loaded, make_batch("bert"))["logits"].shape == (4, 1)


def test_several_checkpoints_of_one_base_live_side_by_side(bases: dict[str, Path], tmp_path: Path) -> None:
    batch = make_batch("bert")
    models = {seed: cut_model("bert", bases["bert"], seed=seed) for seed in (1, 2, 3)}
    expected = {seed: outputs(model, batch) for seed, model in models.items()}
    folders = {seed: lightpeft.save(model, tmp_path / str(seed)) for seed, model in models.items()}
    shared = load_base(bases["bert"])
    before = snapshot(shared)
    loaded = {seed: lightpeft.load(folder, base=shared) for seed, folder in folders.items()}
    for seed, model in loaded.items():
        assert_same(outputs(model, batch), expected[seed])
    assert_identical(shared.state_dict(), before)
    with torch.no_grad():
        for name, parameter in loaded[1].named_parameters():
            if "lora_" in name or parameter.dim() < 2:  # matrices of the base are shared, see `load`
                parameter.zero_()
    assert not torch.allclose(outputs(loaded[1], batch)["logits"], expected[1]["logits"])
    assert_same(outputs(loaded[2], batch), expected[2])
    assert_identical(shared.state_dict(), before)


def test_a_base_that_moved_is_given_by_its_folder(bases: dict[str, Path], tmp_path: Path) -> None:
    moved = save_base("bert", tmp_path / "here")
    model, batch = cut_model("bert", moved), make_batch("bert")
    folder = lightpeft.save(model, tmp_path / "light")
    moved.rename(tmp_path / "there")
    with pytest.raises(CheckpointError, match=r"cannot be loaded.*Pass base="):
        lightpeft.load(folder)
    loaded = lightpeft.load(folder, base=tmp_path / "there")
    assert_same(outputs(loaded, batch), outputs(model, batch))


def test_a_base_given_by_a_relative_path_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept as it was typed, `base` would next time be looked up on the hub."""
    save_base("bert", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    model, batch = cut_model("bert", Path("base")), make_batch("bert")
    lightpeft.save(model, "light")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_same(outputs(lightpeft.load(tmp_path / "light"), batch), outputs(model, batch))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_chosen_at_load(attention: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model, batch = cut_model("bert", bases["bert"]), make_batch("bert")
    folder = lightpeft.save(model, tmp_path / "light")
    loaded = lightpeft.load(folder, attn_implementation=attention)
    assert loaded.config._attn_implementation == attention
    assert_same(outputs(loaded, batch), outputs(model, batch))


def test_an_encoder_without_a_head_is_saved_and_loaded(
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    row = ROWS[name]
    encoder = AutoModel.from_pretrained(bases[name])
    targets = tuple(row.linears[:3])
    model = with_lora(encoder, targets=targets, task_type="FEATURE_EXTRACTION")
    anatomy = lightpeft.find_anatomy(model)
    names = [m.name for m in lightpeft.adapters.find_modules(model)]
    scores = lightpeft.Scores(
        heads=tuple(torch.rand(4) for _ in anatomy.layers),
        neurons=tuple(torch.rand(64) for _ in anatomy.layers),
        ranks={key: torch.rand(4) for key in names},
        modules={key: float(torch.rand(())) for key in names},
        steps=1,
        methods={"base": "fisher", "module": "activation", "rank": "taylor"},
    )
    batch = make_batch(name)
    lightpeft.cut(model, lightpeft.make_plan(scores, anatomy, lightpeft.Budget()))
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    model.eval()
    expected, found = model(**batch).last_hidden_state, loaded(**batch).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert isinstance(loaded.get_base_model(), PreTrainedModel)


@pytest.mark.parametrize("lora", [torch.float32, None], ids=["float32 LoRA", "half LoRA"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(
    dtype: torch.dtype, lora: torch.dtype | None, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = with_lora(load_base(bases["bert"], dtype=dtype))
    if lora is None:
        model.to(dtype)
    lightpeft.cut(model, random_plan(model))
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    for place in ("query", "ffn_out"):
        name = ROWS["bert"].at(1, place)
        mine, found = (m.get_base_model().get_submodule(name) for m in (model, loaded))
        mine, found = (getattr(linear, "base_layer", linear) for linear in (mine, found))
        assert found.weight.dtype == dtype
        assert torch.equal(mine.weight, found.weight)


def test_load_never_estimates(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lightpeft.save(cut_model("bert", bases["bert"]), tmp_path / "light")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("load estimated")

    monkeypatch.setattr("lightpeft.estimation.estimator.Estimator.__init__", refuse)
    monkeypatch.setattr("torch.Tensor.backward", refuse)
    assert lightpeft.load(folder) is not None


def test_saving_again_replaces_the_old_checkpoint(bases: dict[str, Path], tmp_path: Path) -> None:
    one, two = (cut_model("bert", bases["bert"], seed=seed) for seed in (1, 2))
    folder = lightpeft.save(one, tmp_path / "light")
    lightpeft.save(two, folder)
    assert_identical(lightpeft.load(folder).state_dict(), two.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["light"]


def test_an_empty_folder_may_be_saved_to(bases: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "light").mkdir()
    assert is_light_checkpoint(lightpeft.save(cut_model("bert", bases["bert"]), tmp_path / "light"))


def test_a_folder_of_something_else_is_not_replaced(bases: dict[str, Path], tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"thesis\.txt.*did not write"):
        lightpeft.save(cut_model("bert", bases["bert"]), precious)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_file_is_not_replaced(bases: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "light").write_text("a file")
    with pytest.raises(CheckpointError, match="not a folder"):
        lightpeft.save(cut_model("bert", bases["bert"]), tmp_path / "light")
    assert (tmp_path / "light").read_text() == "a file"


def test_a_model_that_was_not_cut_is_not_saved(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path / "base")
    with pytest.raises(CheckpointError, match="was not cut"):
        lightpeft.save(model, tmp_path / "light")
    assert not (tmp_path / "light").exists()


class BrokenError(Exception):
    """Raised by the tests in the middle of a save."""


STEPS_OF_SAVING = [
    "lightpeft.checkpoint.save.write_adapter",
    "lightpeft.checkpoint.save.write_record",
    "lightpeft.checkpoint.save.Card",
    "lightpeft.checkpoint.format.write_tensors",
    "lightpeft.checkpoint.format.write_json",
    "lightpeft.checkpoint.format.file_sha256",
    "lightpeft.outputs.beside._take_place",
]


@pytest.mark.parametrize("where", STEPS_OF_SAVING)
def test_a_save_that_fails_leaves_the_old_checkpoint_alone(
    where: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (cut_model("bert", bases["bert"], seed=seed) for seed in (1, 2))
    folder = lightpeft.save(old, tmp_path / "light")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    _break(monkeypatch, where)
    with pytest.raises(BrokenError):
        lightpeft.save(new, folder)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["light"]
    assert_identical(lightpeft.load(folder).state_dict(), old.state_dict())


@pytest.mark.parametrize("which", [1, 2])
def test_a_rename_that_fails_leaves_the_old_checkpoint_alone(
    which: int, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two names cannot be swapped: the old folder goes aside, the new one takes its name."""
    old, new = (cut_model("bert", bases["bert"], seed=seed) for seed in (1, 2))
    folder, real, calls = lightpeft.save(old, tmp_path / "light"), os.rename, []

    def fragile(self: Path, target: Path) -> Path:
        if self.is_dir():
            calls.append(self)
            if len(calls) == which:
                raise BrokenError
        real(self, target)
        return Path(target)

    monkeypatch.setattr(Path, "rename", fragile)
    monkeypatch.setattr("lightpeft.outputs.beside._exchange", lambda one, other: False)
    with pytest.raises(BrokenError):
        lightpeft.save(new, folder)
    monkeypatch.undo()
    assert_identical(lightpeft.load(folder).state_dict(), old.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["light"]


def test_a_first_save_that_fails_leaves_nothing(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cut_model("bert", bases["bert"])
    _break(monkeypatch, "lightpeft.checkpoint.format.write_json")
    with pytest.raises(BrokenError):
        lightpeft.save(model, tmp_path / "light")
    assert list(tmp_path.iterdir()) == []


def _break(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    import importlib

    def broken(*args: object, **kwargs: object) -> None:
        raise BrokenError

    module, _, attribute = where.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), attribute, broken)


def test_a_card_that_somebody_edited_outlives_save_pretrained(bases: dict[str, Path], tmp_path: Path) -> None:
    model, card = cut_model("bert", bases["bert"]), tmp_path / "light" / "README.md"
    model.save_pretrained(tmp_path / "light")
    model.save_pretrained(tmp_path / "light")
    assert "Light PEFT checkpoint" in card.read_text()
    card.write_text("what I found out")
    model.save_pretrained(tmp_path / "light")
    assert card.read_text() == "what I found out"
