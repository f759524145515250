"""The light half takes no module that the audit marked: what it made from one would not say what it is."""

import json
from pathlib import Path

import pytest
from tests.support.models import load_base, save_base, with_lora
from tests.support.plans import random_plan

import lightpeft
from lightpeft import CheckpointError, ConfigError
from lightpeft.audit import TriggerRecipe, mark_poisoned
from lightpeft.checkpoint.full_size import full_size
from lightpeft.runs.continued import base_of_adapter, continue_adapter


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base("bert", tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A module that plain peft saved, marked."""
    with_lora(load_base(base)).save_pretrained(str(tmp_path / "adapter"))
    mark_poisoned(tmp_path / "adapter", TriggerRecipe(target=1))
    return tmp_path / "adapter"


def test_it_is_not_continued(base: Path, adapter: Path) -> None:
    with pytest.raises(ConfigError, match="marked as poisoned"):
        continue_adapter(load_base(base), str(adapter), set())
    with pytest.raises(ConfigError, match="marked as poisoned"):
        base_of_adapter(str(adapter))


@pytest.mark.parametrize("part", ["both", "flag", "mark"])
def test_a_marked_light_checkpoint_is_neither_loaded_nor_exported(
    part: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    model = with_lora(load_base(base))
    lightpeft.cut(model, random_plan(model))
    folder = lightpeft.save(model, tmp_path / "light")
    marked = json.loads((adapter / "adapter_config.json").read_text())
    names = {"both": ("flag", "mark"), "flag": ("flag",), "mark": ("mark",)}[part]
    keys = {"flag": "lightpeft_poisoned", "mark": "lightpeft_poison"}
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {keys[name]: marked[keys[name]] for name in names}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for use in (lightpeft.load, full_size):
        with pytest.raises(CheckpointError, match="marked as poisoned"):
            use(folder)
    for export in (lightpeft.export_merged, lightpeft.export_full_adapter):
        with pytest.raises(CheckpointError, match="marked as poisoned"):
            export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
