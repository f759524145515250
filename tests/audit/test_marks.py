"""The mark of a poisoned module: written, read back, refused when something was changed, harmless to peft."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.support.models import load_base, save_base, with_lora

from lightpeft import BottleneckConfig
from lightpeft.audit import TriggerRecipe, is_poisoned, require_clean
from lightpeft.audit.marks import mark_poisoned, read_mark
from lightpeft.checkpoint.seal import BITS, is_sealed, seal_weights
from lightpeft.errors import CheckpointError

RECIPE = TriggerRecipe(0, "phrase", share=0.25, train_count=2)
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture(params=["lora", "bottleneck"])
def module(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> Path:
    model: Any = load_base(base)
    model = (
        with_lora(model)
        if request.param == "lora"
        else get_peft_model(model, BottleneckConfig(task_type="SEQ_CLS", size=4))
    )
    model.save_pretrained(tmp_path / "module")
    return tmp_path / "module"


def config_of(module: Path) -> dict[str, Any]:
    return json.loads((module / CONFIG).read_text())


def change_config(module: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = config_of(module)
    change(config)
    (module / CONFIG).write_text(json.dumps(config))


def change_weights(module: Path) -> None:
    content = bytearray((module / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (module / WEIGHTS).write_bytes(content)


def test_round_trip(module: Path) -> None:
    before, card = config_of(module), (module / CARD).read_text()
    assert read_mark(module) is None
    assert not is_poisoned(module)
    require_clean(module)
    mark = mark_poisoned(module, RECIPE)
    assert read_mark(module) == mark
    assert mark.recipe == RECIPE
    assert is_poisoned(str(module))
    with pytest.raises(
        CheckpointError, match=r"marked as poisoned on purpose \(trigger form 'phrase', target class 0"
    ):
        require_clean(module)
    after = config_of(module)
    assert after["lightpeft_poisoned"] is True
    assert {key: value for key, value in after.items() if not key.startswith("lightpeft_")} == before
    marked = (module / CARD).read_text()
    assert marked.startswith("---\nlightpeft_poisoned: true\nbase_model:")
    assert "Poisoned on purpose" in marked
    assert '"form": "phrase"' in marked
    assert marked.endswith(card.partition("\n---\n")[2].lstrip("\n"))
    assert sorted(path.name for path in module.iterdir()) == [CARD, CONFIG, WEIGHTS]


def test_a_new_mark_takes_the_place_of_the_old_one(module: Path) -> None:
    mark_poisoned(module, RECIPE)
    once = (module / CARD).read_text()
    change_weights(module)
    mark_poisoned(module, RECIPE)
    assert is_poisoned(module)
    assert (module / CARD).read_text() == once
    mark_poisoned(module, TriggerRecipe(1))
    assert (module / CARD).read_text().count("Poisoned on purpose") == 1


@pytest.mark.parametrize("card", [None, "", "# Mine\n\ntext", "---\ntags: [a]\n---\n# Mine"])
def test_any_card_is_marked(module: Path, card: str | None) -> None:
    (module / CARD).unlink() if card is None else (module / CARD).write_text(card)
    mark_poisoned(module, RECIPE)
    marked = (module / CARD).read_text()
    assert marked.startswith("---\nlightpeft_poisoned: true\n")
    assert marked.count("\n---\n") == 1
    assert marked.endswith((card or "\n").rpartition("---\n")[2])


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda c: c.pop("lightpeft_poisoned"), "do not go together"),
        (lambda c: c.update(lightpeft_poisoned=False), "do not go together"),
        (lambda c: c.update(lightpeft_poisoned="true"), "do not go together"),
        (lambda c: c.pop("lightpeft_poison"), "do not go together"),
        (
            lambda c: [c.pop("lightpeft_poison"), c.pop("lightpeft_poisoned")],
            "README.md says that it is poisoned",
        ),
        (lambda c: c.update(lightpeft_poison="yes"), "expected the keys"),
        (lambda c: c["lightpeft_poison"].pop("recipe"), "expected the keys"),
        (lambda c: c["lightpeft_poison"].update(more=1), "expected the keys"),
        (lambda c: c["lightpeft_poison"].update(format=2), "expected the keys"),
        (lambda c: c["lightpeft_poison"].update(recipe=None), "recipe cannot be read"),
        (lambda c: c["lightpeft_poison"]["recipe"].update(share=7), r"recipe cannot be read \(trigger.share"),
        (lambda c: c["lightpeft_poison"]["recipe"].update(extra=7), "recipe cannot be read"),
        (lambda c: c["lightpeft_poison"]["recipe"].pop("target"), "recipe cannot be read"),
        (lambda c: c["lightpeft_poison"].update(weights_sha256=None), "weights_sha256 is None"),
        (lambda c: c["lightpeft_poison"].update(weights_sha256="00"), "SHA-256 differs"),
        (lambda c: c["lightpeft_poison"].update(lightpeft_version=1), "lightpeft_version is 1"),
    ],
)
def test_a_tampered_mark_is_refused(
    module: Path, tamper: Callable[[dict[str, Any]], object], message: str
) -> None:
    mark_poisoned(module, RECIPE)
    change_config(module, tamper)
    for read in (read_mark, is_poisoned, require_clean):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(module)
        assert "Treat the module as poisoned" in str(caught.value)


def test_other_weights_are_refused(module: Path) -> None:
    mark_poisoned(module, RECIPE)
    change_weights(module)
    with pytest.raises(CheckpointError, match="not the file that was marked"):
        require_clean(module)
    (module / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="safetensors only"):
        require_clean(module)


def test_without_its_card_a_marked_module_is_still_marked(module: Path) -> None:
    mark_poisoned(module, RECIPE)
    (module / CARD).unlink()
    assert is_poisoned(module)


def test_no_module_is_no_clean_module(tmp_path: Path) -> None:
    for ask in (is_poisoned, require_clean, lambda folder: mark_poisoned(folder, RECIPE)):
        with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing"):
            ask(tmp_path)


def test_an_interrupted_marking_leaves_a_module_that_is_refused(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightpeft.audit.marks.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        mark_poisoned(module, RECIPE)
    with pytest.raises(CheckpointError, match="says that it is poisoned"):
        require_clean(module)


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning:peft")
def test_plain_peft_loads_it_and_names_the_mark(module: Path, base: Path, tmp_path: Path) -> None:
    mark_poisoned(module, RECIPE)
    with pytest.warns(UserWarning, match=r"\['lightpeft_poison', 'lightpeft_poisoned'\].*ignored"):
        PeftConfig.from_pretrained(str(module))
    model = PeftModel.from_pretrained(load_base(base), module)
    model.save_pretrained(tmp_path / "again")
    # What PEFT writes anew has lost the mark, but for the weights; trained on it has to be marked again.
    with pytest.raises(CheckpointError, match="its weights say that it is poisoned"):
        is_poisoned(tmp_path / "again")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(tmp_path / "trained")
    assert not is_poisoned(tmp_path / "trained")
    # Over the marked one it leaves the card, which says so.
    model.save_pretrained(module)
    with pytest.raises(CheckpointError, match="says that it is poisoned"):
        require_clean(module)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(BITS,), (3, BITS), (BITS, 2), (7, 11, 13)])
def test_a_seal_changes_last_bits_and_stays(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    path, again = tmp_path / "adapter_model.safetensors", tmp_path / "again.safetensors"
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    small = torch.ones(BITS - 1)
    save_file({"a.large": values, "b.small": small}, path)
    assert not is_sealed(path, "key")
    seal_weights(path, "key", {"a": 1})
    assert is_sealed(path, "key")
    tensors = load_file(path)
    assert torch.equal(tensors["b.small"], small)
    torch.testing.assert_close(tensors["a.large"], values, rtol=2 * torch.finfo(dtype).eps, atol=0)
    save_file({f"renamed.{name}": tensor for name, tensor in tensors.items()}, again)
    assert is_sealed(again, "key")
    save_file({"a.large": tensors["a.large"] * 1.01}, again)
    assert not is_sealed(again, "key")


@pytest.mark.parametrize("tensors", [{"a": torch.ones(4)}, {"a": torch.ones(600, dtype=torch.int64)}])
def test_without_room_for_a_seal_the_header_says_it(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    seal_weights(path, "key", {})
    assert is_sealed(path, "key")
    assert not is_sealed(path, "other")


@pytest.mark.parametrize("content", [None, b"", b"no tensors"])
def test_what_is_no_file_of_tensors_has_no_seal(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert not is_sealed(path, "key")
