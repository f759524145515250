"""A base is the function: whatever makes one differ is rebuilt to the bit, or refused with its name.

Tables of what people do to a base before or beside PEFT, and of what they give `load` in its place.
"""

import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.support.language import save_language_model
from tests.support.models import load_base, make_batch, save_base, with_lora
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMultipleChoice, PreTrainedModel

import lightpeft
from lightpeft import CheckpointError
from lightpeft.adapters import find_modules
from lightpeft.scores import Scores

BUDGET = lightpeft.Budget(heads=0.5, neurons=0.4, modules=0.3, ranks=0.4, min_heads=1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model("llama", tmp_path_factory.mktemp("llama"))


def cut(model: PeftModel, batch: dict[str, Tensor] | None = None) -> None:
    """A cut by random scores, with everything that is folded and compensated."""
    generator = torch.Generator().manual_seed(0)
    anatomy = lightpeft.find_anatomy(model)
    found = find_modules(model)
    scores = Scores(
        heads=tuple(torch.rand(layer.heads, generator=generator) for layer in anatomy.layers),
        neurons=tuple(torch.rand(layer.neurons, generator=generator) for layer in anatomy.layers),
        ranks={one.name: torch.rand(one.rank, generator=generator) for one in found},
        modules={one.name: float(torch.rand((), generator=generator)) for one in found},
        steps=1,
        methods={"base": "fisher", "module": "activation", "rank": "taylor"},
        means={
            units.out: torch.randn(units.count * units.size, generator=generator)
            for layer in anatomy.layers
            for units in layer.units
        },
    )
    lightpeft.cut(model, lightpeft.make_plan(scores, anatomy, BUDGET), scores=scores, batch=batch)


@torch.no_grad()
def train(model: PeftModel) -> PeftModel:
    """As if an optimizer had moved all that is trainable."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    model.eval()
    found: Tensor = model(**batch).logits
    return found


def lora(base: PreTrainedModel, **options: Any) -> PeftModel:
    options = {"target_modules": "all-linear", "r": 4, "task_type": "SEQ_CLS"} | options
    model = get_peft_model(base, LoraConfig(**options))
    assert isinstance(model, PeftModel)
    return train(model)


def _with_norms(folder: Path) -> PeftModel:
    model = with_lora(load_base(folder))
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name:
            parameter.requires_grad_(True)
    return train(model)


def _with_embeddings(folder: Path) -> PeftModel:
    model = with_lora(load_base(folder))
    model.get_input_embeddings().weight.requires_grad_(True)
    return train(model)


def _resized(folder: Path, **options: Any) -> PeftModel:
    base = load_base(folder)
    base.resize_token_embeddings(107)
    return train(with_lora(base, **options))


def _head(folder: Path, head: nn.Module, **options: Any) -> PeftModel:
    base = load_base(folder)
    base.classifier = head
    return train(with_lora(base, **options))


def _deep_head() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Dropout(0.1), nn.LayerNorm(16), nn.Linear(16, 5))


def _merged_before(folder: Path) -> PeftModel:
    merged: Any = with_lora(load_base(folder), seed=8).merge_and_unload()
    return with_lora(merged)


def _cast(folder: Path, dtype: torch.dtype) -> PeftModel:
    return with_lora(load_base(folder).to(dtype))


def _float_norms(folder: Path) -> PeftModel:
    base = load_base(folder, dtype=torch.bfloat16)
    for module in base.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    return with_lora(base)


def _rounded(folder: Path) -> PeftModel:
    return with_lora(load_base(folder, dtype=torch.bfloat16).float())


def _adapters_cast(folder: Path) -> PeftModel:
    model = with_lora(load_base(folder, dtype=torch.bfloat16))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _adapters_wide(folder: Path) -> PeftModel:
    model = with_lora(load_base(folder))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.double() / 3
    return model


def _named_head() -> nn.Module:
    return nn.Sequential(OrderedDict(down=nn.Linear(32, 16), act=nn.Tanh(), out=nn.Linear(16, 5)))


def _later_weight(folder: Path) -> PeftModel:
    base = load_base(folder)
    with torch.no_grad():
        base.bert.encoder.layer[1].output.dense.weight.mul_(1.5)
        base.bert.embeddings.word_embeddings.weight[7] = 3.0
    return with_lora(base)


BEFORE: dict[str, Callable[[Path], PeftModel]] = {
    "nothing": lambda folder: with_lora(load_base(folder)),
    "bias all": lambda folder: train(with_lora(load_base(folder), bias="all")),
    "bias lora_only": lambda folder: train(with_lora(load_base(folder), bias="lora_only")),
    "norms unfrozen": _with_norms,
    "embeddings unfrozen": _with_embeddings,
    "embeddings resized": _resized,
    "embeddings resized, saved by PEFT": lambda folder: _resized(folder, modules_to_save=["word_embeddings"]),
    "a head of another size": lambda folder: _head(folder, nn.Linear(32, 5)),
    "a head of another size, not PEFT's": lambda folder: _head(folder, nn.Linear(32, 5), task_type=None),
    "a head of several layers": lambda folder: _head(folder, _deep_head()),
    "a head of named layers": lambda folder: _head(folder, _named_head()),
    "adapters cast to float64": _adapters_wide,
    "a head of several layers, not PEFT's": lambda folder: _head(folder, _deep_head(), task_type=None),
    "no head": lambda folder: _head(folder, nn.Identity(), task_type=None),
    "an adapter merged before": _merged_before,
    "weights changed by hand": _later_weight,
    "cast to bfloat16": lambda folder: _cast(folder, torch.bfloat16),
    "cast to float64": lambda folder: _cast(folder, torch.float64),
    "float32 norms in bfloat16": _float_norms,
    "rounded by bfloat16": _rounded,
    "adapters cast to bfloat16": _adapters_cast,
    "other activation": lambda folder: with_lora(load_base(folder, hidden_act="relu")),
    "other epsilon": lambda folder: with_lora(load_base(folder, layer_norm_eps=0.1)),
    "five labels": lambda folder: train(with_lora(load_base(folder, num_labels=5))),
}


CAST_AFTER = ("nothing", "norms unfrozen", "bias all")
"""Rows that are also cast after the cut, as the Trainer's bf16_full_eval does."""


@pytest.mark.parametrize(
    ("before", "cast"), [*((name, False) for name in BEFORE), *((name, True) for name in CAST_AFTER)]
)
def test_a_base_is_rebuilt_to_the_bit(before: str, cast: bool, bert: Path, tmp_path: Path) -> None:
    model = BEFORE[before](bert)
    cut(model)
    train(model)
    if cast:
        model.to(torch.bfloat16)
    batch = make_batch("bert")
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    merged = lightpeft.export_merged(tmp_path / "light", tmp_path / "merged")
    again = lightpeft.load_merged(tmp_path / "merged")
    assert torch.equal(logits(again, batch), logits(merged, batch))
    twice = lightpeft.load(lightpeft.save(loaded, tmp_path / "twice"))
    assert torch.equal(logits(twice, batch), logits(model, batch))


def test_a_copied_embedding_that_a_head_is_tied_to(tmp_path: Path) -> None:
    """PEFT trains a copy of the embedding; the head goes on using the original, which was resized."""
    base = AutoModelForCausalLM.from_pretrained(save_language_model("gpt2", tmp_path / "gpt2"))
    base.resize_token_embeddings(24)
    model = lora(base, task_type="CAUSAL_LM", modules_to_save=["wte"], fan_in_fan_out=True)
    cut(model)
    train(model)
    batch = {"input_ids": torch.arange(3, 23)[None]}
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert torch.equal(logits(loaded, batch), logits(model, batch))


CAUSAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bias lora_only": ({}, {"bias": "lora_only"}),
    "rope scaling": ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, {}),
    "rope theta": ({"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}, {}),
    "norm epsilon": ({"rms_norm_eps": 0.1}, {}),
    "activation": ({"hidden_act": "gelu"}, {}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", CAUSAL)
def test_options_of_from_pretrained_come_back(
    row: str, dtype: torch.dtype, llama: Path, tmp_path: Path
) -> None:
    given, options = CAUSAL[row]
    base = AutoModelForCausalLM.from_pretrained(llama, **given).to(dtype)
    model = lora(base, task_type="CAUSAL_LM", **options)
    cut(model)
    train(model)
    batch = {"input_ids": torch.arange(3, 13)[None]}
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_any_auto_class_comes_back(bert: Path, tmp_path: Path) -> None:
    model = lora(
        AutoModelForMultipleChoice.from_pretrained(bert), task_type=None, target_modules=["query", "value"]
    )
    batch = {"input_ids": torch.randint(5, 90, (2, 3, 8)), "attention_mask": torch.ones(2, 3, 8)}
    cut(model, batch)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.fixture(scope="module")
def good(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = with_lora(load_base(bert))
    cut(model)
    return lightpeft.save(model, tmp_path_factory.mktemp("good") / "light")


def _names(folder: Path) -> Iterator[str]:
    yield from (name for name, _ in load_base(folder).bert.named_parameters() if "pooler" not in name)


@pytest.mark.parametrize("kind", ["bias", "LayerNorm", "word_embeddings", "position_embeddings", "weight"])
def test_one_other_value_of_a_base_is_noticed(kind: str, good: Path, bert: Path, tmp_path: Path) -> None:
    """Whatever tensor, in a folder or in memory."""
    name = [name for name in _names(bert) if kind in name][-1]
    base = load_base(bert)
    with torch.no_grad():
        base.bert.get_parameter(name).view(-1)[-1] += 0.01
    base.save_pretrained(tmp_path / "other")
    for given in (base, tmp_path / "other"):
        with pytest.raises(CheckpointError, match=f"weights differ, .*{name} first"):
            lightpeft.load(good, base=given)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "relu"}, {"layer_norm_eps": 0.1}, {"is_decoder": True}, {"num_attention_heads": 2}],
    ids=str,
)
def test_a_base_of_another_configuration(
    changes: dict[str, Any], good: Path, bert: Path, tmp_path: Path
) -> None:
    """In memory it is refused by what differs; of a folder only the weights count."""
    with pytest.raises(CheckpointError, match=f"{next(iter(changes))} is"):
        lightpeft.load(good, base=load_base(bert, **changes))
    other = tmp_path / "other"
    load_base(bert).save_pretrained(other)
    config = other / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    batch = make_batch("bert")
    assert torch.equal(logits(lightpeft.load(good, base=other), batch), logits(lightpeft.load(good), batch))


def test_a_base_that_cannot_be_found_again_is_said_at_once(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base(bert)
    base.config._name_or_path = str(tmp_path / "gone")
    model = with_lora(base)
    cut(model)
    folder = lightpeft.save(model, tmp_path / "light")
    assert "will not find this run's base" in caplog.text
    with pytest.raises(CheckpointError, match="Pass base="):
        lightpeft.load(folder)
    assert torch.equal(
        logits(lightpeft.load(folder, base=bert), make_batch("bert")), logits(model, make_batch("bert"))
    )


def test_a_module_that_cannot_be_described_is_said_at_once(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = _head(bert, Doubled(32, 2))
    cut(model)
    folder = lightpeft.save(model, tmp_path / "light")
    assert "classifier of the base was replaced" in caplog.text
    with pytest.raises(CheckpointError, match="classifier of the base was replaced"):
        lightpeft.load(folder)


REVISIONS = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForSequenceClassification
import lightpeft
from tests.checkpoint.test_bases import cut, logits
from tests.support.models import make_batch, with_lora

folder, given = Path(sys.argv[1]), sys.argv[2:]
options = {"revision": given[0]} if given else {}
model = with_lora(AutoModelForSequenceClassification.from_pretrained("me/tiny", **options))
cut(model)
lightpeft.save(model, folder)
loaded = lightpeft.load(folder)
assert torch.equal(logits(loaded, make_batch("bert")), logits(model, make_batch("bert")))
print(json.loads((folder / "pruning.json").read_text())["base"]["revision"])
"""


@pytest.mark.parametrize("given", [None, "b" * 40], ids=["main", "revision given"])
def test_the_revision_of_a_hub_name_is_found_by_the_weights(given: str | None, tmp_path: Path) -> None:
    """A cache with two revisions, offline: `main` and another that somebody asked for."""
    cache = tmp_path / "home" / "hub" / "models--me--tiny"
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        save_base("bert", cache / "snapshots" / commit, seed=seed)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    words = [sys.executable, "-c", REVISIONS, str(tmp_path / "light"), *([] if given is None else [given])]
    root = Path(__file__).parents[2]
    env = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([*sys.path, str(root)]),
    }
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == (given or "a" * 40)


def test_a_merged_model_that_was_edited_on_purpose_is_taken_when_asked(good: Path, tmp_path: Path) -> None:
    lightpeft.export_merged(good, tmp_path / "merged")
    config = tmp_path / "merged" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_dropout_prob": 0.5}))
    with pytest.raises(CheckpointError, match="load with check_files=False"):
        lightpeft.load_merged(tmp_path / "merged")
    edited = lightpeft.load_merged(tmp_path / "merged", check_files=False)
    batch = make_batch("bert")
    torch.testing.assert_close(logits(edited, batch), logits(lightpeft.load(good), batch))
