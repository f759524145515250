"""An evenly cut model as an ordinary checkpoint: what each architecture can say; transformers reads it."""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.support.forms import enliven
from tests.support.models import load_base, make_batch, save_base, with_lora
from tests.support.plans import random_scores as encoder_scores
from tests.support.probing import agree, outputs, random_scores
from tests.support.zoo import ANIMALS, AUTO, BY_NAME, WIDTH, Animal
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    GenerationConfig,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

import lightpeft
from lightpeft import Budget, CheckpointError, Plan, PlanError, Scores, SurgeryConfig, find_anatomy, make_plan
from lightpeft.anatomy import linear_at
from lightpeft.checkpoint import stock

EVEN = Budget(heads=0.4, neurons=0.4, modules=0.3, ranks=0.4, uniform=True)
UNEVEN = Budget(heads=0.4, neurons=0.4, modules=0.3, ranks=0.4, heads_scope="global", neurons_scope="global")


@dataclass(frozen=True)
class Row:
    """What a configuration can say, written down apart from lightpeft's table."""

    heads: bool = False
    neurons: bool = True
    layers: bool = True
    biases: tuple[str, ...] = ("heads", "neurons")
    """Of which kinds of units the output projections can have a bias."""

    becomes: str = ""
    """The class that is written, where it is another one."""


GROUPED = Row(heads=True, biases=())
HALF = replace(GROUPED, biases=("heads",))
ROWS = {
    **dict.fromkeys([animal.name for animal in ANIMALS], Row()),
    "albert": Row(layers=False),
    "gpt_neo": Row(layers=False),
    "bloom": Row(neurons=False),
    "vit": Row(heads=True),
    "dinov2": Row(heads=True, neurons=False),
    # 6 of 8 heads do not divide a width of 32.
    "llama": replace(GROUPED, becomes="MistralForCausalLM"),
    **dict.fromkeys(["mistral", "qwen2", "phi3"], GROUPED),
    **dict.fromkeys(["qwen3", "gemma", "gemma2", "gemma3"], HALF),
    "smollm3": Row(heads=True),
    **dict.fromkeys(["mixtral", "qwen2_moe"], replace(GROUPED, neurons=False)),
    "qwen3_moe": replace(HALF, neurons=False),
    **dict.fromkeys(["t5", "t5 (gated)"], Row(biases=())),
}
LAYERS = {"units": 0.0, "layers too": 0.5}
A_FEW = ("bert", "llama", "gpt2", "t5", "vit")


def with_means(scores: Scores, model: PeftModel) -> Scores:
    """So that compensation has something to put into biases."""
    base = model.get_base_model()
    outs = [units.out for layer in find_anatomy(model).layers for units in layer.units]
    return replace(
        scores, means={out: torch.randn(linear_at(base, out).weight.numel() // WIDTH) for out in outs}
    )


def cut_evenly(animal: Animal, share_of_layers: float = 0.0) -> tuple[PeftModel, Plan]:
    model = animal.with_lora(animal.attentions[-1])
    scores = with_means(random_scores(model), model)
    plan = make_plan(scores, find_anatomy(model), replace(EVEN, layers=share_of_layers))
    lightpeft.cut(model, plan, scores=scores, batch=animal.batch(padded=True))
    return model, plan


def export(animal: Animal, model: PeftModel, folder: Path) -> Path:
    light, out = lightpeft.save(model, folder / "light"), folder / "out"
    lightpeft.export_transformers(light, out, animal.build(animal.attentions[-1]))
    return out


def read(animal: Animal, out: Path) -> PreTrainedModel:
    model: PreTrainedModel = AUTO[animal.task].from_pretrained(out, attn_implementation=animal.attentions[-1])
    return model.eval()


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.name)
def test_transformers_alone_computes_what_the_light_model_does(
    animal: Animal, layers: float, tmp_path: Path
) -> None:
    row, model = ROWS[animal.name], None
    refused = (layers and not row.layers) or not (row.heads or row.neurons or layers)
    if refused:
        with pytest.raises(PlanError, match=r"no layer of .* can be skipped|leaves nothing of bloom to cut"):
            cut_evenly(animal, layers)
        return
    model, plan = cut_evenly(animal, layers)
    before = model.get_base_model()
    check_plan(animal, row, plan, layers)
    check_biases(model, row, plan)
    stays_tied = tied(before)
    batch = animal.batch(padded=True)
    expected = outputs(model, batch)
    small = read(animal, export(animal, model, tmp_path))
    agree(outputs(small, batch), expected)
    assert type(small).__name__ == (row.becomes or type(before).__name__)
    assert tied(small) == stays_tied
    whole = animal.build(animal.attentions[-1])
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole.parameters())


def check_plan(animal: Animal, row: Row, plan: Plan, layers: float) -> None:
    """The same counts everywhere, and less than all exactly where the configuration can say so."""
    kept = [layer for layer in plan.layers if not layer.skipped]
    heads = {(len(one.heads), one.head_count) for one in kept if one.head_count}
    neurons = {(len(one.neurons), one.neuron_count) for one in kept if one.neuron_count}
    assert len(heads) == 1
    assert len(neurons) <= 1
    assert all((count < total) == row.heads for count, total in heads)
    assert all((count < total) == row.neurons for count, total in neurons)
    assert bool(plan.skipped_layers) == bool(layers)


def check_biases(model: PeftModel, row: Row, plan: Plan) -> None:
    """Compensation gives biases where there can be some, and nowhere else."""
    base = model.get_base_model()
    for layer, wanted in zip(find_anatomy(model).layers, plan.layers, strict=True):
        for units, count in ((layer.attention, wanted.head_count), (layer.ffn, wanted.neuron_count)):
            if units is not None and units.count < count and not wanted.skipped:
                assert (linear_at(base, units.out).bias is not None) == (units.kind in row.biases), units.out


def tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.name)
def test_an_uneven_plan_is_refused_and_nothing_is_left(animal: Animal, tmp_path: Path) -> None:
    model = animal.with_lora(animal.attentions[-1])
    plan = make_plan(random_scores(model), find_anatomy(model), UNEVEN)
    lightpeft.cut(model, plan, batch=animal.batch(padded=True))
    with pytest.raises(CheckpointError, match=r"--budget\.uniform true\), or .* \(--to merged\)"):
        export(animal, model, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["light"]


def test_llama_stays_llama_and_is_compensated_where_its_heads_divide_the_width(tmp_path: Path) -> None:
    animal = BY_NAME["llama"]
    model = animal.with_lora()
    scores = with_means(random_scores(model), model)
    lightpeft.cut(model, make_plan(scores, find_anatomy(model), replace(EVEN, heads=0.5)), scores=scores)
    expected = outputs(model, animal.batch(padded=True))
    out = export(animal, model, tmp_path)
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["num_attention_heads"], config["num_key_value_heads"]) == (
        "llama",
        4,
        2,
    )
    assert config["attention_bias"]
    assert config["mlp_bias"]
    agree(outputs(read(animal, out), animal.batch(padded=True)), expected)


BIASED = replace(BY_NAME["llama"], options=BY_NAME["llama"].options | {"attention_bias": True})
"""Mistral cannot stand in for a LLaMA with biases."""


def test_a_llama_with_biases_keeps_to_numbers_that_divide_the_width(tmp_path: Path) -> None:
    model, plan = cut_evenly(BIASED)
    assert {len(layer.heads) for layer in plan.layers} == {4}
    expected = outputs(model, BIASED.batch(padded=True))
    small = read(BIASED, export(BIASED, model, tmp_path))
    assert small.config.model_type == "llama"
    agree(outputs(small, BIASED.batch(padded=True)), expected)


def test_counts_that_a_configuration_does_not_take_are_refused(tmp_path: Path) -> None:
    model = BIASED.with_lora()
    plan = make_plan(random_scores(model), find_anatomy(model), replace(EVEN, uniform=False))
    lightpeft.cut(model, plan)
    with pytest.raises(
        CheckpointError, match=r"LlamaConfig does not take these counts: .* \(--budget\.uniform"
    ):
        export(BIASED, model, tmp_path)


@pytest.mark.parametrize("name", ["llama", "qwen3", "vit"])
def test_equal_heads_of_every_group_are_said_too(name: str, tmp_path: Path) -> None:
    animal = BY_NAME[name]
    model = animal.with_lora()
    budget = replace(EVEN, heads=0.5, kv_groups="equal")
    lightpeft.cut(model, make_plan(random_scores(model), find_anatomy(model), budget))
    expected = outputs(model, animal.batch(padded=True))
    small = read(animal, export(animal, model, tmp_path))
    agree(outputs(small, animal.batch(padded=True)), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_written_generates_the_same(name: str, tmp_path: Path) -> None:
    animal = BY_NAME[name]
    model, _ = cut_evenly(animal, 0.5)
    inputs = {"input_ids": animal.batch(padded=False)["input_ids"][:1]}
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    light = lightpeft.save(model, tmp_path / "light")
    base = animal.build()
    base.generation_config = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=1)
    lightpeft.export_transformers(light, tmp_path / "out", base)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert small.generation_config.max_new_tokens == 5
    assert torch.equal(small.generate(**inputs), expected)


WITHOUT_LIGHTPEFT = """
import sys
sys.modules["lightpeft"] = None
import torch, transformers
from safetensors.torch import load_file, save_file
for folder, kind in zip(sys.argv[1::2], sys.argv[2::2]):
    batch = load_file(f"{folder}/batch.safetensors")
    model = getattr(transformers, kind).from_pretrained(f"{folder}/out").eval()
    with torch.no_grad():
        save_file({"logits": model(**batch).logits}, f"{folder}/found.safetensors")
"""


def test_a_process_without_lightpeft_computes_the_same(tmp_path: Path) -> None:
    words, expected = [], {}
    for name in A_FEW:
        animal, folder = BY_NAME[name], tmp_path / name
        model, _ = cut_evenly(animal, 0.5)
        batch = animal.batch(padded=True)
        with torch.no_grad():
            expected[folder] = model(**batch).logits, batch.get("attention_mask")
        export(animal, model, folder)
        save_file(batch, folder / "batch.safetensors")
        words += [str(folder), AUTO[animal.task].__name__]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_LIGHTPEFT, *words]
    subprocess.run(command, check=True, capture_output=True)
    for folder, (logits, mask) in expected.items():
        found = load_file(folder / "found.safetensors")["logits"]
        alike = mask is not None and mask.shape == logits.shape[:2]
        agree(found[mask.bool()] if alike else found, logits[mask.bool()] if alike else logits)


def light_encoder(
    folder: Path, config: LoraConfig | IA3Config | None = None
) -> tuple[Path, Mapping[str, object]]:
    """A saved light model of a base that is saved too, with a trained head, and what it says."""
    base = load_base(save_base("bert", folder / "base"))
    base.config.id2label, base.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    model = with_lora(base) if config is None else get_peft_model(base, config)
    enliven(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or ".ia3_l." in name:
                parameter.mul_(1.5).add_(0.3)
    scores = encoder_scores(model, means=True) if config is None else random_scores(model)
    lightpeft.cut(model, make_plan(scores, find_anatomy(model), EVEN), scores=scores)
    return lightpeft.save(model, folder / "light"), {"logits": outputs(model, make_batch("bert"))}


@pytest.mark.parametrize("form", ["lora", "ia3"])
def test_the_trained_head_and_its_labels_are_in_it(form: str, tmp_path: Path) -> None:
    linears = ["query", "output.dense"]
    ia3 = IA3Config(task_type="SEQ_CLS", target_modules=linears, feedforward_modules=["output.dense"])
    light, said = light_encoder(tmp_path, None if form == "lora" else ia3)
    lightpeft.export_transformers(light, tmp_path / "out")
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    agree(outputs(small, make_batch("bert")), said["logits"])
    assert small.config.id2label == {0: "bad", 1: "good"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_sixteen_bits_stays_one(dtype: torch.dtype, tmp_path: Path) -> None:
    animal = BY_NAME["llama"]
    model = animal.with_lora()
    model.get_base_model().to(dtype)
    plan = make_plan(random_scores(model), find_anatomy(model), EVEN)
    lightpeft.cut(model, plan, config=SurgeryConfig(compensate=False))
    light = lightpeft.save(model, tmp_path / "light")
    lightpeft.export_transformers(light, tmp_path / "out", animal.build().to(dtype))
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert small.dtype == dtype


def test_what_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = stock._renumbered

    def wrong(*args: object) -> dict[str, torch.Tensor]:
        state = right(*args)
        state["classifier.bias"] = state["classifier.bias"] + 0.01
        return state

    light, _ = light_encoder(tmp_path)
    monkeypatch.setattr(stock, "_renumbered", wrong)
    with pytest.raises(CheckpointError, match="computes other logits than the light model"):
        lightpeft.export_transformers(light, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "light"]


def test_biases_that_no_configuration_says_are_named(tmp_path: Path) -> None:
    """An even plan without `uniform` is compensated everywhere."""
    animal = BY_NAME["mistral"]
    model = animal.with_lora()
    scores = with_means(random_scores(model), model)
    lightpeft.cut(model, make_plan(scores, find_anatomy(model), replace(EVEN, uniform=False)), scores=scores)
    with pytest.raises(CheckpointError, match=r"o_proj\.bias .* no place .*--surgery\.compensate false"):
        export(animal, model, tmp_path)


def test_architectures_that_lightpeft_found_by_looking_are_refused_before_a_run() -> None:
    config = MptConfig(d_model=WIDTH, n_heads=4, n_layers=2, max_seq_len=40, vocab_size=99)
    peft = get_peft_model(MptForCausalLM(config), LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(PlanError, match=r"leaves nothing of mpt to cut: .* does not know how the config"):
        make_plan(random_scores(peft), find_anatomy(peft), EVEN)


def test_a_class_of_transformers_that_reads_a_merged_folder_is_told_what_to_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    light, _ = light_encoder(tmp_path)
    lightpeft.export_merged(light, tmp_path / "merged")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, "transformers"), pytest.raises(RuntimeError):
            BertForSequenceClassification.from_pretrained(tmp_path / "merged")
    finally:
        logger.removeHandler(caplog.handler)
    assert "use lightpeft.load_merged" in caplog.text


def test_a_merged_folder_of_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    light, said = light_encoder(tmp_path)
    lightpeft.export_merged(light, tmp_path / "merged")
    path = tmp_path / "merged" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"model_type": values.pop("lightpeft_model_type")}))
    merged = lightpeft.load_merged(tmp_path / "merged", check_files=False)
    agree(outputs(merged, make_batch("bert")), said["logits"])


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    from transformers import BertTokenizerFast

    light, _ = light_encoder(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]
    BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}).save_pretrained(light)
    lightpeft.export_transformers(light, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("good film")["input_ids"] == [2, 5, 6, 3]
