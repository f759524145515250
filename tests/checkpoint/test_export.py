"""Exports: merged weights compute what the light model does; plain peft loads a full-size adapter."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import IA3Config, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.ia3 import IA3Layer
from safetensors.torch import load_file, save_file
from tests.support.forms import FORM_ROWS, module_names
from tests.support.models import load_base, make_batch, save_base, with_lora
from tests.support.plans import random_plan
from tests.support.plans import random_scores as scores_with_means
from tests.support.probing import agree, outputs, random_scores
from tests.support.zoo import BY_NAME, Animal
from torch import Tensor, nn

import lightpeft
from lightpeft import Budget, CheckpointError, Plan, SurgeryConfig, find_anatomy, make_plan
from lightpeft.anatomy import linear_at
from lightpeft.checkpoint.full_size import full_size
from lightpeft.linears import matrix

UNEVEN = Budget(heads=0.4, neurons=0.4, modules=0.3, ranks=0.4, heads_scope="global", neurons_scope="global")
FOLD = SurgeryConfig(fold_removed=True, compensate=False)
LINEAR_FORMS = [name for name, row in FORM_ROWS.items() if row.linear]
A_FEW = (
    "bert",
    "deberta-v2",
    "modernbert",
    "llama",
    "gpt2",
    "gpt_neox",
    "falcon (grouped)",
    "opt",
    "bart",
    "t5",
)


def light(animal: Animal, form: str, folder: Path) -> tuple[PeftModel, PeftModel, Plan, Path]:
    """A model before its cut, after it, the plan, and the checkpoint."""
    model = animal.with_peft(form, animal.attentions[-1])
    before, batch = copy.deepcopy(model), animal.batch(padded=True)
    plan = make_plan(random_scores(model), find_anatomy(model), UNEVEN)
    lightpeft.cut(model, plan, batch=batch, config=FOLD)
    return before, model, plan, lightpeft.save(model, folder / "light")


@pytest.mark.parametrize("form", LINEAR_FORMS)
@pytest.mark.parametrize("name", A_FEW)
def test_merged_computes_what_the_light_model_computes(name: str, form: str, tmp_path: Path) -> None:
    animal = BY_NAME[name]
    _, model, plan, folder = light(animal, form, tmp_path)
    batch = animal.batch(padded=True)
    base = animal.build(animal.attentions[-1])
    lightpeft.export_merged(folder, tmp_path / "merged", base)
    merged = lightpeft.load_merged(tmp_path / "merged", attn_implementation=animal.attentions[-1])
    agree(outputs(merged, batch), outputs(model, batch))
    assert json.loads((tmp_path / "merged" / "pruning.json").read_text())["plan"] == plan.to_dict()
    assert sum(p.numel() for p in merged.parameters()) < sum(p.numel() for p in base.parameters())


def zeroed_by_hand(before: PeftModel, plan: Plan) -> None:
    """The uncut LoRA model with rows of B and columns of A at zero where the plan cuts; DoRA's gains stay."""
    base = before.get_base_model()
    layers = {name: base.get_submodule(name) for name in module_names(before)}
    gains = {name: gain(layer) for name, layer in layers.items() if "default" in layer.lora_magnitude_vector}
    for name, side, lost in cut_channels(base, plan):
        if name in layers and side == "out":
            layers[name].lora_B["default"].weight.data[lost] = 0
        elif name in layers:
            layers[name].lora_A["default"].weight.data[:, lost] = 0
        if name in gains and side == "out":
            gains[name][lost] = 1
    for name, values in gains.items():
        layers[name].lora_magnitude_vector["default"].weight.data = values * rows_norm(layers[name])


def cut_channels(base: nn.Module, plan: Plan) -> Iterator[tuple[str, str, list[int]]]:
    """Linear, side, and the channels that go."""
    for layer, wanted in zip(find_anatomy(base).layers, plan.layers, strict=True):
        for units, kept in layer.with_kept(wanted.heads, wanted.neurons):
            lost = [unit for unit in range(units.count) if unit not in kept]
            yield units.out, "in", units.channels(lost)
            for rows in units.rows:
                yield rows.name, "out", list(rows.gone(units.count, kept))


def rows_norm(layer: nn.Module) -> Tensor:
    delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    return torch.linalg.vector_norm(matrix(layer.get_base_layer()) + delta, dim=1).detach()


def gain(layer: nn.Module) -> Tensor:
    return layer.lora_magnitude_vector["default"].weight.detach() / rows_norm(layer)


@pytest.mark.parametrize("form", LINEAR_FORMS)
@pytest.mark.parametrize("name", A_FEW)
def test_the_full_size_adapter_is_the_uncut_one_with_zeros(name: str, form: str, tmp_path: Path) -> None:
    """Nothing was trained after the cut, so folded and surviving ranks together are the adapter of before."""
    animal = BY_NAME[name]
    before, _, plan, folder = light(animal, form, tmp_path)
    batch, base = animal.batch(padded=True), animal.build(animal.attentions[-1])
    lightpeft.export_full_adapter(folder, tmp_path / "full", base)
    stock = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "full"))
    zeroed_by_hand(before, plan)
    agree(outputs(stock, batch), outputs(before, batch))
    agree(outputs(full_size(folder, base), batch), outputs(before, batch))
    assert not torch.allclose(outputs(stock, batch), outputs(base, batch), atol=1e-3)


@pytest.mark.parametrize("form", ["sequential", "parallel"])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_bottleneck_of_full_size_keeps_its_modules(name: str, form: str, tmp_path: Path) -> None:
    """What goes of it is dropped; only the constant output of a module that is gone stays."""
    animal = BY_NAME[name]
    before, _, plan, folder = light(animal, form, tmp_path)
    batch, base = animal.batch(padded=True), animal.build(animal.attentions[-1])
    lightpeft.export_full_adapter(folder, tmp_path / "full", base)
    stock = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "full"))
    for module in plan.modules:
        up = before.get_base_model().get_submodule(f"{module.name}.bottleneck_up.default")
        lost = [rank for rank in range(module.rank_count) if rank not in module.ranks]
        up.weight.data[:, lost] = 0
    agree(outputs(stock, batch), outputs(before, batch))


PLAIN_PEFT = """
import sys
sys.modules["lightpeft"] = None
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
for line in sys.stdin:
    base, adapter, batch, found = line.rstrip("\\n").split("\\t")
    whole = AutoModelForSequenceClassification.from_pretrained(base)
    model = PeftModel.from_pretrained(whole, adapter).eval()
    with torch.no_grad():
        save_file({"logits": model(**load_file(batch)).logits}, found)
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def plain_peft() -> Iterator[Callable[..., None]]:
    """A Python without lightpeft that writes what an adapter on a base computes of a batch."""
    command = [sys.executable, "-W", "ignore", "-c", PLAIN_PEFT]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        given, told = process.stdin, process.stdout

        def compute(*paths: Path) -> None:
            print(*paths, sep="\t", file=given, flush=True)
            assert told.readline() == "done\n"

        yield compute
        given.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
    ],
    ids=str,
)
# peft takes B's bias for a weight that was not gathered.
@pytest.mark.filterwarnings("ignore:.*have invalid shape")
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_plain_peft_without_lightpeft_computes_the_same(
    name: str, options: dict[str, object], plain_peft: Callable[..., None], tmp_path: Path
) -> None:
    """The head of a base without one is random; with PEFT's task type it is in the adapter."""
    folder = save_base(name, tmp_path / "base")
    model, batch = with_lora(load_base(folder), **options), make_batch(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    lightpeft.cut(model, random_plan(model), scores=scores_with_means(model, means=True), batch=batch)
    light_folder = lightpeft.save(model, tmp_path / "light")
    lightpeft.export_full_adapter(light_folder, tmp_path / "full")
    save_file(batch, tmp_path / "batch.safetensors")
    found_at = tmp_path / "found.safetensors"
    plain_peft(folder, tmp_path / "full", tmp_path / "batch.safetensors", found_at)
    expected = outputs(full_size(light_folder), batch)
    torch.testing.assert_close(load_file(found_at)["logits"], expected, rtol=0, atol=1e-5)


def test_trained_biases_lose_what_stood_in_for_cut_units(tmp_path: Path) -> None:
    """With bias="all" the light base's biases hold compensation, which the whole base must not have."""
    folder = save_base("bert", tmp_path / "base")
    model = with_lora(load_base(folder), bias="all")
    before = {
        name: linear_at(model.get_base_model(), name).bias.detach().clone() for name in module_names(model)
    }
    plan = random_plan(model)
    lightpeft.cut(model, plan, scores=scores_with_means(model, means=True))
    whole = full_size(lightpeft.save(model, tmp_path / "light"))
    for name, bias in before.items():
        found = linear_at(whole.get_base_model(), name).bias
        torch.testing.assert_close(found, bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_bottlenecks_are_not_merged(form: str, tmp_path: Path) -> None:
    animal = BY_NAME["bert"]
    *_, folder = light(animal, form, tmp_path)
    with pytest.raises(CheckpointError, match="cannot be merged"):
        lightpeft.export_merged(folder, tmp_path / "merged", animal.build())
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("damage", ["weights", "plan", "kind", "missing", "config"])
def test_a_damaged_merged_folder_is_refused(damage: str, tmp_path: Path) -> None:
    animal = BY_NAME["bert"]
    *_, folder = light(animal, "lora", tmp_path)
    merged = tmp_path / "merged"
    lightpeft.export_merged(folder, merged, animal.build())
    value = json.loads((merged / "pruning.json").read_text())
    if damage == "weights":
        (merged / "model.safetensors").write_bytes((merged / "model.safetensors").read_bytes()[:-9])
    if damage == "plan":
        value["plan"]["layers"][0]["heads"] = "0"
        (merged / "pruning.json").write_text(json.dumps(value))
    if damage == "kind":
        (merged / "pruning.json").write_text(json.dumps(value | {"kind": "light"}))
    if damage == "missing":
        (merged / "model.safetensors").unlink()
    if damage == "config":
        config = json.loads((merged / "config.json").read_text())
        (merged / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(CheckpointError):
        lightpeft.load_merged(merged)


def test_load_and_load_merged_name_each_other(tmp_path: Path) -> None:
    animal = BY_NAME["bert"]
    *_, folder = light(animal, "lora", tmp_path)
    lightpeft.export_merged(folder, tmp_path / "merged", animal.build())
    with pytest.raises(CheckpointError, match="load_merged"):
        lightpeft.load(tmp_path / "merged")
    with pytest.raises(CheckpointError, match="expected 'merged'"):
        lightpeft.load_merged(folder)


def other_form(kind: str) -> PeftConfig:
    """IA3 and prompts: forms without ranks."""
    if kind == "ia3":
        linears = ["query", "value", "output.dense"]
        return IA3Config(task_type="SEQ_CLS", target_modules=linears, feedforward_modules=["output.dense"])
    return PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)


@pytest.mark.parametrize("kind", ["ia3", "prompt"])
def test_forms_without_ranks_have_a_full_size_too(kind: str, tmp_path: Path) -> None:
    """IA3's vectors are 1 where something was cut; a prompt is what it is."""
    base = load_base(save_base("bert", tmp_path / "base"))
    model, batch = get_peft_model(base, other_form(kind)), make_batch("bert")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    before, plan = copy.deepcopy(model), random_plan(model)
    lightpeft.cut(model, plan, config=FOLD)
    folder = lightpeft.save(model, tmp_path / "light")
    lightpeft.export_full_adapter(folder, tmp_path / "full")
    stock = PeftModel.from_pretrained(load_base(tmp_path / "base"), str(tmp_path / "full"))
    for name, side, lost in cut_channels(before.get_base_model(), plan):
        layer = before.get_base_model().get_submodule(name)
        if isinstance(layer, IA3Layer) and layer.is_feedforward == (side == "in"):
            layer.ia3_l["default"].data.flatten()[lost] = 1
    agree(outputs(stock, batch), outputs(before, batch))


def test_ia3_merges(tmp_path: Path) -> None:
    base = load_base(save_base("bert", tmp_path / "base"))
    model, batch = get_peft_model(base, other_form("ia3")), make_batch("bert")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ia3_l." in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    lightpeft.cut(model, random_plan(model), config=FOLD)
    lightpeft.export_merged(lightpeft.save(model, tmp_path / "light"), tmp_path / "merged")
    agree(outputs(lightpeft.load_merged(tmp_path / "merged"), batch), outputs(model, batch))


def test_prompts_are_not_merged(tmp_path: Path) -> None:
    base = load_base(save_base("bert", tmp_path / "base"))
    model = get_peft_model(base, other_form("prompt"))
    lightpeft.cut(model, random_plan(model), config=FOLD)
    with pytest.raises(CheckpointError, match="prompt tuning cannot be merged"):
        lightpeft.export_merged(lightpeft.save(model, tmp_path / "light"), tmp_path / "merged")
