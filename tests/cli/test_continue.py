"""`lightpeft train --adapter`: an adapter that plain peft trained elsewhere is gone on with, lightly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.cli.conftest import QUICK, read

import lightpeft
from lightpeft.cli.main import main
from lightpeft.run_config import PeftOptions
from lightpeft.runs import load_peft_model
from lightpeft.tasks import class_head

ELSEWHERE = """
import sys
sys.modules["lightpeft"] = None
import torch
from peft import get_peft_model, LoraConfig
from transformers import AutoModelForSequenceClassification
model_path, out, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
torch.manual_seed(5)
base = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2)
model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, **options))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for _ in range(5):
    ids = torch.randint(5, 50, (8, 12))
    model(input_ids=ids, labels=ids[:, 0] % 2).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained(out)
"""
TARGETS = ["query", "value", "output.dense"]


def trained_elsewhere(tiny_model: Path, out: Path, **options: object) -> Path:
    """An adapter from a process in which lightpeft cannot be imported."""
    chosen = {"target_modules": TARGETS} | options
    words = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(tiny_model), str(out), repr(chosen)]
    subprocess.run(words, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_elsewhere(tiny_model, tmp_path_factory.mktemp("elsewhere") / "adapter")


def test_one_command_continues_it(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No --model: the adapter names its base."""
    run = tmp_path / "run"
    assert main(["train", "--adapter", str(adapter), "--out", str(run), "--compare", *QUICK]) == 0
    assert "plain continued PEFT" in capsys.readouterr().out
    plan = read(run / "light" / "pruning.json")["plan"]
    assert {module["rank_count"] for module in plan["modules"]} == {4}
    assert {module["name"].rpartition("layer.")[2][2:] for module in plan["modules"]} == {
        "attention.self.query",
        "attention.self.value",
        "attention.output.dense",
        "output.dense",
    }
    config = read(run / "light" / "adapter_config.json")
    assert config["lora_alpha"] == 8
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["main"]
    assert found == pytest.approx(read(run / "result.json")["light"]["metric"], abs=1e-6)


def test_it_starts_from_the_trained_weights(adapter: Path) -> None:
    options = PeftOptions(adapter=str(adapter))
    base = read(adapter / "adapter_config.json")["base_model_name_or_path"]
    model = load_peft_model(str(base), class_head(("negative", "positive")), options, seed=0)
    found = model.state_dict()
    saved = load_file(adapter / "adapter_model.safetensors")
    for key, value in saved.items():
        names = [n for n in found if n.replace(".default", "").replace("modules_to_save.", "") == key]
        assert any(torch.equal(found[name], value) for name in names), key
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in trainable)
    assert any("classifier.modules_to_save" in name for name in trainable)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "all"}, {"use_rslora": True}], ids=str)
def test_variants_are_continued(
    options: dict[str, object], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = trained_elsewhere(tiny_model, tmp_path / "adapter", **options)
    run = tmp_path / "run"
    assert main(["train", "--adapter", str(elsewhere), "--out", str(run), *QUICK]) == 0
    assert lightpeft.load(run / "light").peft_config["default"].to_dict().items() >= options.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "VERA"}, "VERA"),
        ({"auto_mapping": {"parent_library": "os"}}, "import code"),
        ({"base_model_name_or_path": None}, "give --model"),
    ],
)
def test_an_adapter_that_cannot_be_used(
    change: dict[str, object],
    message: str,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in adapter.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = read(broken / "adapter_config.json") | change
    (broken / "adapter_config.json").write_text(json.dumps(config))
    assert main(["train", "--adapter", str(broken), "--out", str(tmp_path / "out"), *QUICK]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_refused(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    torch.save({}, pickled / "adapter_model.bin")
    assert main(["train", "--adapter", str(pickled), "--out", str(tmp_path / "out"), *QUICK]) == 2
    assert "adapter_model.safetensors is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora.rank", "4"], "lora.* would have no effect"),
        (["--bottleneck.size", "4"], "bottleneck.* would have no effect"),
        (["--peft", "parallel"], "peft would have no effect"),
    ],
)
def test_options_without_effect_are_refused(
    words: list[str], message: str, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["train", "--adapter", str(adapter), *out, *words, *QUICK]) == 2
    assert message in capsys.readouterr().err


def test_neither_model_nor_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "out"), *QUICK]) == 2
    assert "give --model" in capsys.readouterr().err


def test_a_light_checkpoint_is_no_adapter_to_continue(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--adapter", str(finished_run / "light"), "--out", str(tmp_path / "out")]
    assert main(["train", *words, *QUICK]) == 2
    assert "cut already" in capsys.readouterr().err
