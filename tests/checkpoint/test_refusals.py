"""A checkpoint that is damaged, strange or of another base is refused, and the message says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.models import ROWS, load_base, make_batch, outputs, save_base, with_lora
from tests.support.plans import random_plan, random_scores

import lightpeft
from lightpeft import CheckpointError
from lightpeft.indices import format_indices, parse_indices


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def good(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = with_lora(load_base(base))
    scores = random_scores(model, gates=True, means=True)
    lightpeft.cut(model, random_plan(model), scores=scores)
    return lightpeft.save(model, tmp_path_factory.mktemp("good") / "light")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "light"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refused(folder: Path, message: str | None) -> None:
    """By its digest, and, should somebody have edited on purpose, by what is wrong with it."""
    with pytest.raises(CheckpointError, match=r"on purpose|version|damaged"):
        lightpeft.load(folder)
    with pytest.raises(CheckpointError, match=message):
        lightpeft.load(folder, check_files=False)


def test_the_copy_is_good(folder: Path) -> None:
    assert outputs(lightpeft.load(folder), make_batch("bert"))["logits"].shape == (4, 2)


@pytest.mark.parametrize(
    "name",
    ["pruning.json", "light.safetensors", "adapter_config.json", "adapter_model.safetensors"],
)
class TestEachFile:
    def test_missing(self, name: str, folder: Path) -> None:
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=rf"{name}.*missing"):
            lightpeft.load(folder)

    @pytest.mark.parametrize("left", [0, 1, 20, 0.5, 0.99])
    def test_cut_off(self, name: str, left: float, folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(left * len(data)) if left < 1 else int(left)])
        with pytest.raises(CheckpointError, match=rf"{name}.*(cut off|damaged)"):
            lightpeft.load(folder)

    def test_noise(self, name: str, folder: Path) -> None:
        (folder / name).write_bytes(bytes(range(256)) * 4)
        with pytest.raises(CheckpointError, match=rf"{name}"):
            lightpeft.load(folder)


@pytest.mark.parametrize("name", ["light.safetensors", "adapter_model.safetensors"])
def test_one_flipped_value_is_noticed(name: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name}.*SHA-256 differs"):
        lightpeft.load(folder)


def test_an_adapter_of_another_checkpoint_is_noticed(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: t + 1 for k, t in tensors.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        lightpeft.load(folder)


PLAN_EDITS: list[tuple[str, Callable[[dict[str, Any]], object], str | None]] = [
    ("format version", lambda v: v.update(format_version=99), "version 99"),
    ("no version", lambda v: v.pop("format_version"), "version None"),
    ("plan version", lambda v: v["plan"].update(format_version=99), "plan has version 99"),
    ("no plan", lambda v: v.pop("plan"), "plan"),
    ("plan is text", lambda v: v.update(plan="all"), "plan|damaged"),
    ("no weights", lambda v: v.pop("weights"), "weights"),
    ("dtype", lambda v: v["weights"].update(dict.fromkeys(v["weights"], "load [1] 0")), "weights differ"),
    ("dtypes", lambda v: v["dtypes"].update(most="torch.load"), "does not tell the dtypes"),
    ("configuration", lambda v: v["base"]["config"].update(model_type="os"), "unknown to transformers"),
    ("no files", lambda v: v.pop("files"), "does not list its files"),
    ("no base", lambda v: v.pop("base"), "base"),
    ("base is text", lambda v: v.update(base="bert"), "base"),
    ("class", lambda v: v["base"].update(auto_class="os.system"), "os.system"),
    (
        "out of range",
        lambda v: v["plan"]["layers"][1].update(heads="0,4"),
        "layer 1, heads: index 4 is out of range, there are only 4",
    ),
    (
        "duplicate",
        lambda v: v["plan"]["layers"][1].update(neurons="0-3,3-9"),
        "layer 1, neurons: index 3 is duplicated",
    ),
    ("descending", lambda v: v["plan"]["layers"][0].update(heads="2,1"), "comes after"),
    ("empty layer", lambda v: v["plan"]["layers"][0].update(heads=""), "it was changed"),
    ("layer missing", lambda v: v["plan"]["layers"].pop(), "into layer 2, which it has not"),
    ("counts", lambda v: v["plan"]["layers"][0].update(head_count=9), "it was changed"),
    ("architecture", lambda v: v["plan"].update(model_type="roberta"), "it was changed"),
    ("more neurons", lambda v: v["plan"]["layers"][0].update(neurons="0-63"), None),
    ("fewer heads", lambda v: v["plan"]["layers"][0].update(heads="0"), None),
    ("ranks", lambda v: v["plan"]["modules"][0].update(ranks="0-3"), None),
    ("module renamed", lambda v: v["plan"]["modules"][0].update(name="x"), None),
]


@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in PLAN_EDITS], ids=[case[0] for case in PLAN_EDITS]
)
def test_a_tampered_pruning_json_is_refused(
    change: Callable[[dict[str, Any]], object], message: str | None, folder: Path
) -> None:
    edit(folder / "pruning.json", change)
    refused(folder, message)


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_other_units_of_the_same_number_are_refused(kind: str, folder: Path) -> None:
    """The shapes would fit, the outputs would be wrong."""

    def other(value: dict[str, Any]) -> None:
        layer = next(one for one in value["plan"]["layers"] if one[kind] not in ("0-3", "0-63"))
        count = layer["head_count" if kind == "heads" else "neuron_count"]
        kept = parse_indices(layer[kind], count, kind)
        gone = min(set(range(count)) - set(kept))
        layer[kind] = format_indices(sorted([gone, *kept[1:]]))

    edit(folder / "pruning.json", other)
    with pytest.raises(CheckpointError):
        lightpeft.load(folder)


CONFIG_EDITS: list[tuple[dict[str, Any], str]] = [
    ({"megatron_config": {"x": 1}, "megatron_core": "os"}, "megatron_config.*import code"),
    ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping.*import code"),
    ({"peft_type": "IA3"}, r"disagree about .* tensors, .*\.ia3_l first"),
    ({"peft_type": "BOTTLENECK"}, "does not fit"),
    ({"peft_type": "VERA"}, "has the PEFT type 'VERA', expected one of LORA, BOTTLENECK, IA3"),
    ({"peft_type": "os.system"}, "has the PEFT type 'os.system', expected one of LORA"),
    ({"peft_type": None}, "has the PEFT type None, expected one of LORA"),
    ({"target_modules": ["nowhere"]}, "nowhere|does not fit"),
    ({"rank_pattern": {}}, "does not fit"),
    ({"use_dora": True}, "disagree about .* tensors, .*lora_magnitude_vector"),
    ({"bias": "all"}, r"disagree about .* tensors, .*\.bias first"),
    ({"bias": "lora_only"}, r"disagree about .* tensors, .*\.bias first"),
    ({"lora_bias": True}, r"disagree about .* tensors, .*lora_B\.bias first"),
    ({"modules_to_save": ["classifier", "pooler"]}, "does not fit the cut base.*pooler"),
    ({"target_modules": []}, "does not fit|disagree"),
]


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(("changes", "message"), CONFIG_EDITS, ids=lambda v: str(v)[:30])
def test_a_strange_adapter_config_is_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / "adapter_config.json", lambda value: value.update(changes))
    refused(folder, message)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "\x00"])
def test_an_adapter_config_that_is_no_object_is_refused(text: str, folder: Path) -> None:
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        lightpeft.load(folder)


def test_nothing_is_imported_from_a_megatron_core(folder: Path, tmp_path: Path) -> None:
    import sys

    edit(
        folder / "adapter_config.json",
        lambda value: value.update(megatron_config={"a": 1}, megatron_core="antigravity"),
    )
    with pytest.raises(CheckpointError):
        lightpeft.load(folder)
    assert "antigravity" not in sys.modules


def test_another_base_by_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_base("bert", tmp_path / "other", seed=7)
    with pytest.raises(CheckpointError, match=r"not the one that the model was cut from.*same base"):
        lightpeft.load(folder, base=other)


@pytest.mark.parametrize("sizes", [{"layers": 2}, {"neurons": 48}, {"width": 16}])
def test_another_base_by_shape_is_refused(sizes: dict[str, int], folder: Path, tmp_path: Path) -> None:
    other = save_base("bert", tmp_path / "other", **sizes)
    with pytest.raises(CheckpointError, match="does not fit the base"):
        lightpeft.load(folder, base=other)


def test_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_base("roberta", tmp_path / "other")
    with pytest.raises(CheckpointError, match="does not fit the base"):
        lightpeft.load(folder, base=other)


@pytest.mark.parametrize("part", ["query", "key", "value", "attention_out", "ffn_in", "ffn_out"])
def test_one_other_layer_of_the_base_is_noticed(part: str, folder: Path, base: Path) -> None:
    other = load_base(base)
    with torch.no_grad():
        other.get_submodule(ROWS["bert"].at(2, part)).weight.mul_(1.01)
    with pytest.raises(CheckpointError, match="not the one that the model was cut from"):
        lightpeft.load(folder, base=other)


def test_a_base_in_another_dtype_is_refused(folder: Path, base: Path) -> None:
    with pytest.raises(CheckpointError, match="dtype"):
        lightpeft.load(folder, base=load_base(base, dtype=torch.bfloat16))


def test_a_base_that_is_cut_already_is_refused(folder: Path, base: Path) -> None:
    other = load_base(base)
    lightpeft.cut(other, random_plan(with_lora(load_base(base))))
    with pytest.raises(CheckpointError):
        lightpeft.load(folder, base=other)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pruning\.json is missing"):
        lightpeft.load(tmp_path)


def test_a_name_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a light checkpoint"):
        lightpeft.load(str(tmp_path / "nowhere"))


def test_a_refused_checkpoint_changes_no_base(folder: Path, base: Path) -> None:
    shared = load_base(base)
    before = {key: value.clone() for key, value in shared.state_dict().items()}
    edit(folder / "adapter_config.json", lambda value: value.update(rank_pattern={}))
    with pytest.raises(CheckpointError):
        lightpeft.load(folder, base=shared)
    assert all(torch.equal(value, before[key]) for key, value in shared.state_dict().items())
