"""Loading reads weight by weight: beside what the model keeps, one weight of the base is held at most."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from tests.support.models import load_base, make_batch, outputs, save_base, with_lora
from tests.support.probing import random_scores
from torch import Tensor, nn

import lightpeft
from lightpeft import Budget, CheckpointError
from lightpeft.checkpoint import hollow
from lightpeft.memory import LiveBytes

HALF = Budget(heads=0.5, neurons=0.5, modules=0.3, ranks=0.4)
MOST = 1.15


def cut_model(base: Path) -> PeftModel:
    model = with_lora(load_base(base))
    anatomy = lightpeft.find_anatomy(model)
    gates = {
        units.out: 1 + torch.rand(units.count * units.size)
        for layer in anatomy.layers
        for units in layer.units
    }
    scores = random_scores(model)
    scores = lightpeft.Scores(**{**vars(scores), "gates": gates, "means": gates})
    lightpeft.cut(model, lightpeft.make_plan(scores, anatomy, HALF), scores=scores)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in shards, most of it linears that are cut; a light checkpoint of it, and that merged."""
    folder = tmp_path_factory.mktemp("saved")
    whole = load_base(save_base("bert", folder / "whole", layers=12, width=128, neurons=512))
    whole.base_model.save_pretrained(folder / "base", max_shard_size="3MB")
    lightpeft.save(cut_model(folder / "base"), folder / "light")
    lightpeft.export_merged(folder / "light", folder / "merged")
    return folder


WAYS: dict[str, Callable[[Path], nn.Module]] = {
    "light": lambda folder: lightpeft.load(folder / "light"),
    "merged": lambda folder: lightpeft.load_merged(folder / "merged"),
}
WEIGHTS = {"light": "base", "merged": "merged"}


class Counted:
    """A file whose tensors `LiveBytes` sees, and which tells what was read of it."""

    read: ClassVar[Counter[str]] = Counter()

    def __init__(self, path: Path, **options: Any) -> None:
        self._file = safe_open(path, **options)

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def get_slice(self, key: str) -> Any:
        return self._file.get_slice(key)

    def get_tensor(self, key: str) -> Tensor:
        self.read[key] += 1
        return self._file.get_tensor(key).clone()


@pytest.mark.parametrize("way", WAYS)
def test_loading_holds_the_cut_model_and_one_weight(
    way: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WAYS[way](saved)  # whatever is made once only
    monkeypatch.setattr(hollow, "safe_open", Counted)
    monkeypatch.setattr(Counted, "read", Counter())
    with LiveBytes() as live:
        model = WAYS[way](saved)
    kept = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert live.peak < MOST * kept
    assert live.peak > 0.9 * kept, "not all of what was read was counted"
    wanted: Counter[str] = Counter()
    for path in (saved / WEIGHTS[way]).glob("*model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            wanted.update(file.keys())
    assert Counted.read == wanted


def test_a_whole_copy_would_be_seen(saved: Path) -> None:
    with LiveBytes() as live:
        base = load_base(saved / "base")
        for parameter in base.parameters():
            parameter.data = parameter.data.clone()
    kept = sum(p.nbytes for p in lightpeft.load(saved / "light").parameters())
    assert live.peak > 1.5 * kept


@pytest.mark.parametrize("shard", [0, -1])
def test_a_base_that_lacks_a_shard_is_refused(shard: int, saved: Path, tmp_path: Path) -> None:
    for file in (saved / "base").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lost = sorted(tmp_path.glob("*.safetensors"))[shard]
    lost.unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        lightpeft.load(saved / "light", tmp_path)


def test_a_changed_weight_of_the_base_is_named(saved: Path, tmp_path: Path) -> None:
    other = load_base(saved / "base")
    with torch.no_grad():
        other.get_parameter("bert.encoder.layer.3.output.dense.weight")[0, 0] += 1
    other.base_model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"1 of \d+ weights differ, bert\.encoder\.layer\.3\.output"):
        lightpeft.load(saved / "light", tmp_path)


STORED: dict[str, Callable[[nn.Module, Path], None]] = {
    "in half the width": lambda base, folder: base.to(torch.bfloat16).save_pretrained(folder),
    "with the names of a whole model": lambda base, folder: base.save_pretrained(folder),
    "as pickles": lambda base, folder: _save_pickled(base, folder),
}


def _save_pickled(base: Any, folder: Path) -> None:
    base.config.save_pretrained(folder)
    torch.save(base.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("stored", STORED)
def test_bases_come_back_however_they_are_stored(stored: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    encoder = save_base("bert", tmp_path / "encoder")
    STORED[stored](load_base(encoder), base)
    model = with_lora(load_base(base, dtype=torch.float32))
    scores = random_scores(model)
    lightpeft.cut(model, lightpeft.make_plan(scores, lightpeft.find_anatomy(model), HALF), scores=scores)
    lightpeft.save(model, tmp_path / "light")
    found, batch = lightpeft.load(tmp_path / "light"), make_batch("bert")
    assert torch.equal(outputs(found, batch)["logits"], outputs(model, batch)["logits"])
    assert json.loads((tmp_path / "light" / "pruning.json").read_text())["base"]["dtype"] == "torch.float32"
