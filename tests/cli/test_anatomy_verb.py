"""`lightpeft anatomy`: one screen for any model, numbers from the configuration, and honest exit codes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.probing import assert_cache_changes_nothing
from tests.support.zoo import BART, BY_NAME, LLAMA, VIT, Animal
from tests.surgery.test_zoo import FOLD, UNEVEN, check_cut
from transformers import AutoConfig, AutoModel

from lightpeft import load
from lightpeft.anatomy import FAMILIES
from lightpeft.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-architecture.md"


def save_config(folder: Path, model_type: str, options: Any) -> str:
    """A folder with a configuration and no weights."""
    AutoConfig.for_model(model_type, **options).save_pretrained(folder)
    return str(folder)


def shown(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> list[str]:
    capsys.readouterr()
    assert main(["anatomy", *words]) == status
    return capsys.readouterr().out.splitlines()


def test_a_known_model_is_shown_with_what_its_configuration_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_config(tmp_path, "llama", LLAMA)
    lines = shown(capsys, folder)
    parameters = sum(
        p.numel() for p in AutoModel.from_config(AutoConfig.from_pretrained(folder)).parameters()
    )
    assert lines[0] == f"{folder}: in lightpeft's table; {parameters:,} parameters without a head on top"
    assert lines[2] == "  layer 0-1: 8 heads of 4 in KV groups of 2, 48 FFN neurons"
    assert lines[3].startswith("PEFT targets: self_attn.q_proj, self_attn.k_proj, self_attn.v_proj, ")
    assert lines[4].startswith(
        "probe cuts of layer heads, layer neurons verified (built from its configuration"
    )
    assert "eager and sdpa" in lines[4]


def test_a_stranger_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_config(tmp_path, "olmo2", LLAMA)
    lines = shown(capsys, folder)
    assert "not in lightpeft's table" in lines[0]
    assert "  found by looking, not in lightpeft's table" in lines
    assert "8 heads of 4 in KV groups of 2 (fixed: could not be verified: layer 0" in lines[2]
    assert lines[-1].startswith("probe cuts of layer neurons verified")


def test_the_probe_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_config(tmp_path, "llama", LLAMA)
    assert shown(capsys, folder, "--probe", "false")[-1] == "not probed"


def test_json_has_every_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_config(tmp_path, "starcoder2", LLAMA | {"num_hidden_layers": 3})
    found = json.loads("\n".join(shown(capsys, folder, "--json")))
    assert found["known"] is False
    assert [layer["name"] for layer in found["layers"]] == ["layer 0", "layer 1", "layer 2"]
    heads, neurons = found["layers"][1]["heads"], found["layers"][1]["neurons"]
    assert (heads["count"], heads["size"], heads["kv_groups"], heads["fixed"]) == (8, 4, 4, None)
    assert neurons["linears"] == ["layers.1.mlp.c_fc", "layers.1.mlp.c_proj"]
    assert found["probe"]["verified"] == ["layer heads", "layer neurons"]
    assert found["probe"]["attentions"] == ["eager", "sdpa"]


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("marian", BART | {"encoder_layers": 24, "decoder_layers": 24}),
        ("t5", BY_NAME["t5"].options | {"num_layers": 24}),
        (
            "swin",
            VIT | {"image_size": 64, "embed_dim": 8, "depths": [2, 2, 18, 2], "num_heads": [2, 2, 4, 4]},
        ),
        ("clip", BY_NAME["clip"].options),
    ],
)
def test_it_fits_on_one_screen(
    model_type: str, options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        key: value for key, value in options.items() if model_type != "swin" or key != "num_attention_heads"
    }
    lines = shown(capsys, save_config(tmp_path, model_type, options), "--probe=false")
    assert len(lines) <= 24
    if model_type == "marian":
        assert lines[2:5] == [
            "  encoder 0-23: 4 heads of 8, 48 FFN neurons",
            "  decoder 0-23: 4 heads of 8, 48 FFN neurons",
            "  decoder 0-23 cross-attention: 4 heads of 8",
        ]


def test_a_known_model_whose_probe_fails_ends_in_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (stack,) = FAMILIES["llama"]
    wrong = replace(stack, attention=replace(stack.attention, follow={}))
    wrong = replace(wrong, ffn=None)
    monkeypatch.setitem(FAMILIES, "llama", (wrong,))
    lines = shown(capsys, save_config(tmp_path, "llama", LLAMA), status=1)
    assert any(line.startswith("layer heads could not be verified: layer 0") for line in lines)


def test_a_name_that_is_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["anatomy", "nobody/nothing"]) == 2
    assert "'nobody/nothing' is neither a folder with a configuration nor a name" in capsys.readouterr().err


def test_code_in_a_model_folder_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["anatomy", str(tmp_path)]) == 2
    assert not (tmp_path / "ran").exists()
    assert capsys.readouterr().err.startswith("lightpeft anatomy: the model")


def blocks_of(language: str) -> list[str]:
    """The fenced blocks of the page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_about_adding_an_architecture_is_true(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, Any] = {}
    for block in blocks_of("python"):
        exec(block, written)
    animal, before, after = written["MPT_ANIMAL"], *blocks_of("text")
    assert isinstance(animal, Animal)
    assert "mpt" not in FAMILIES
    folder = save_config(tmp_path / "config", "mpt", animal.options)
    assert set(before.splitlines()) <= set(shown(capsys, folder))
    for name, stacks in written["DECODERS"].items():
        monkeypatch.setitem(FAMILIES, name, stacks)
    assert set(after.splitlines()) <= set(shown(capsys, folder))
    check_cut(animal, "eager", UNEVEN, FOLD, tmp_path / "light", padded=True)
    assert_cache_changes_nothing(
        load(tmp_path / "light", base=animal.build("eager")), animal.batch(padded=True)
    )
