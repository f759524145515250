"""The ordinary ways of saving a cut model write a light checkpoint, and stock readers of one are warned."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import AutoPeftModelForSequenceClassification, PeftModel
from tests.support.hub import received
from tests.support.models import load_base, make_batch, outputs, save_base, with_lora
from tests.support.plans import random_plan, random_scores
from tests.support.runs import trainer
from transformers import AutoModelForSequenceClassification, Trainer

import lightpeft
from lightpeft import Budget, CheckpointError, LightCallback, LightConfig, LightTrainer
from lightpeft.checkpoint import is_light_checkpoint

ONLY_RANKS = Budget(heads=0.0, neurons=0.0, modules=0.4, ranks=0.5)
"""Nothing of the base goes, so that every shape fits the whole one and PEFT alone could load the adapter."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


def cut_model(base: Path, budget: Budget | None = None) -> PeftModel:
    model = with_lora(load_base(base))
    plan = random_plan(model) if budget is None else random_plan(model, budget=budget)
    lightpeft.cut(model, plan, scores=random_scores(model, gates=True, means=True))
    return model


WAYS: dict[str, Callable[[PeftModel, Path], object]] = {
    "lightpeft.save": lambda model, folder: lightpeft.save(model, folder),
    "save_pretrained": lambda model, folder: model.save_pretrained(str(folder)),
    "save_pretrained of a copy": lambda model, folder: copy.deepcopy(model).save_pretrained(str(folder)),
    "save_pretrained with embeddings": lambda model, folder: model.save_pretrained(
        str(folder), save_embedding_layers=True
    ),
    "Trainer.save_model": lambda model, folder: Trainer(model=model).save_model(str(folder)),
    "twice": lambda model, folder: [model.save_pretrained(str(folder)) for _ in range(2)],
}


@pytest.mark.parametrize("loaded", [False, True], ids=["cut", "loaded"])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_writes_a_light_checkpoint(way: str, loaded: bool, base: Path, tmp_path: Path) -> None:
    model = cut_model(base)
    if loaded:
        model = lightpeft.load(lightpeft.save(model, tmp_path / "first"))
    WAYS[way](model, tmp_path / "light")
    assert is_light_checkpoint(tmp_path / "light")
    found = outputs(lightpeft.load(tmp_path / "light"), make_batch("bert"))["logits"]
    assert torch.equal(found, outputs(model, make_batch("bert"))["logits"])


REFUSED: dict[str, Callable[[PeftModel, Path], object]] = {
    "pickles": lambda model, folder: model.save_pretrained(str(folder), safe_serialization=False),
    "pushed as well": lambda model, folder: model.save_pretrained(str(folder), push_to_hub=True),
    "the base inside": lambda model, folder: model.get_base_model().save_pretrained(folder),
    "merged": lambda model, folder: model.merge_and_unload().save_pretrained(folder),
    "unloaded": lambda model, folder: model.unload().save_pretrained(folder),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_cannot_be_loaded_is_not_written(way: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lightpeft\.save\(model, folder\)"):
        REFUSED[way](cut_model(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _by_peft(folder: Path, base: Path) -> object:
    return PeftModel.from_pretrained(load_base(base), str(folder))


STOCK_READERS: dict[str, Callable[[Path, Path], object]] = {
    "PeftModel": _by_peft,
    "AutoPeftModel": lambda folder, _: AutoPeftModelForSequenceClassification.from_pretrained(folder),
    "transformers": lambda folder, _: AutoModelForSequenceClassification.from_pretrained(folder),
    "load_adapter": lambda folder, base: load_base(base).load_adapter(str(folder)),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("reader", STOCK_READERS)
def test_a_stock_reader_is_warned_though_the_shapes_fit(reader: str, base: Path, tmp_path: Path) -> None:
    folder = lightpeft.save(cut_model(base, ONLY_RANKS), tmp_path / "light")
    with pytest.warns(UserWarning, match=r"made_for_a_cut_base_use_lightpeft\.load"):
        STOCK_READERS[reader](folder, base)


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")
@pytest.mark.parametrize("reader", ["PeftModel", "AutoPeftModel"])
def test_a_stock_reader_is_stopped_where_the_base_was_cut(reader: str, base: Path, tmp_path: Path) -> None:
    folder = lightpeft.save(cut_model(base), tmp_path / "light")
    with pytest.raises(RuntimeError, match="size mismatch"):
        STOCK_READERS[reader](folder, base)


def test_what_the_hub_gets_is_a_light_checkpoint(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, uploaded = cut_model(base), received(monkeypatch, tmp_path)
    model.push_to_hub("somebody/something", max_shard_size="1GB")
    assert 'lightpeft.load("somebody/something"' in (uploaded / "README.md").read_text()
    assert torch.equal(
        outputs(lightpeft.load(uploaded, base), make_batch("bert"))["logits"],
        outputs(model, make_batch("bert"))["logits"],
    )
    for push, options in ((model.push_to_hub, {"tags": ["mine"]}), (model.get_base_model().push_to_hub, {})):
        shutil.rmtree(uploaded, ignore_errors=True)
        with pytest.raises(CheckpointError):
            push("somebody/something", **options)
        assert not uploaded.exists()


LIGHT = LightConfig(estimation=lightpeft.EstimationConfig(steps=3), budget=Budget(heads=0.5, neurons=0.5))


@pytest.mark.parametrize("kind", [Trainer, LightTrainer])
def test_the_card_of_the_trainer_does_not_replace_ours(
    kind: type[Trainer], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = {}

    def upload_folder(folder_path: str, **_: Any) -> None:
        pushed["card"] = (Path(folder_path) / "README.md").read_text()

    hub = SimpleNamespace(upload_folder=upload_folder)
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    options = {"light": LIGHT} if kind is LightTrainer else {"callbacks": [LightCallback(LIGHT)]}
    run = trainer(base, tmp_path, kind=kind, max_steps=6, **options)
    run.hub_model_id = "somebody/something"
    run.push_to_hub()
    assert "generated automatically according to the information the Trainer" in pushed["card"]
    (tmp_path / "README.md").unlink()
    run.train()
    run.push_to_hub()
    assert "library_name: lightpeft" in pushed["card"]
    run.create_model_card()  # who asks for the Trainer's gets it
    assert "library_name: lightpeft" not in (tmp_path / "README.md").read_text()


def test_one_callback_cuts_every_fold(base: Path, tmp_path: Path) -> None:
    callback = LightCallback(LIGHT)
    plans = []
    for fold in range(3):
        run = trainer(base, tmp_path / str(fold), kind=Trainer, callbacks=[callback], max_steps=6)
        run.train()
        plans.append(callback.plan)
        assert (
            lightpeft.find_anatomy(run.model).parameters < lightpeft.find_anatomy(load_base(base)).parameters
        )
    assert None not in plans
    run.train()  # the same Trainer once more trains the cut model on
    assert callback.plan is plans[-1]


def test_an_ordinary_trainer_resumes_after_the_cut(base: Path, tmp_path: Path) -> None:
    """Without a call of `restore`: the callback cuts the fresh model before the Trainer loads its adapter."""
    options = {"kind": Trainer, "save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    whole = trainer(base, tmp_path / "whole", callbacks=[LightCallback(LIGHT)], **options)
    whole.train()
    for step in (2, 6):
        again = trainer(base, tmp_path / "whole", callbacks=[LightCallback(LIGHT)], **options)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for name, value in whole.model.state_dict().items():
            if ".original_module." not in name:
                assert torch.equal(again.model.state_dict()[name], value), name


def test_an_accelerate_loop_goes_on_from_its_state(base: Path, tmp_path: Path) -> None:
    """Two steps, `save_state`, two more; another process would come to the same weights."""
    batches = [make_batch("bert", seed=seed, labels=True) for seed in range(4)]

    def steps(accelerator: Accelerator, model: torch.nn.Module, optimizer: Any, number: slice) -> None:
        model.train()
        for batch in batches[number]:
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()

    def prepared(model: PeftModel) -> tuple[Accelerator, Any, Any]:
        accelerator = Accelerator(cpu=True)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        return accelerator, *accelerator.prepare(model, optimizer)

    accelerator, model, optimizer = prepared(cut_model(base))
    lightpeft.save_with_state(accelerator)
    steps(accelerator, model, optimizer, slice(2))
    accelerator.save_state(str(tmp_path / "state"))
    steps(accelerator, model, optimizer, slice(2, 4))
    again, other, optimizer = prepared(lightpeft.load(tmp_path / "state" / "light", is_trainable=True))
    again.load_state(str(tmp_path / "state"))
    steps(again, other, optimizer, slice(2, 4))
    found = outputs(other, make_batch("bert"))["logits"]
    assert torch.equal(found, outputs(model, make_batch("bert"))["logits"])
