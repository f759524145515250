"""LoRA after a cut: the scaling stays, the configuration is exact, and stock PEFT rebuilds the model."""

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.support.models import (
    HEADS,
    NAMES,
    ROWS,
    WIDTH,
    assert_same,
    gated,
    load_base,
    make_batch,
    outputs,
    save_base,
    tiny_peft,
    with_lora,
)
from tests.support.plans import lora_names, plan_gates, random_plan, random_scores
from tests.support.zoo import BY_NAME
from torch import nn
from transformers import PreTrainedModel

import lightpeft
from lightpeft import AnatomyError, Budget, Plan, SurgeryConfig, find_anatomy, make_plan
from lightpeft.adapters import find_modules, limits_of_form

ONLY_RANKS = Budget(heads=0, neurons=0, modules=0.3, ranks=0.6)
DROP = SurgeryConfig(fold_removed=False, compensate=False)


def cut_by_hand(base: nn.Module, plan: Plan) -> nn.Module:
    """The plan carried out on a plain base with indexing only."""
    row, size = ROWS[plan.model_type], WIDTH // HEADS

    def keep(place: str, dim: int, index: list[int]) -> None:
        old = base.get_submodule(place)
        new = nn.Linear(
            len(index) if dim == 1 else old.in_features,
            len(index) if dim == 0 else old.out_features,
        )
        new.weight = nn.Parameter(old.weight.data.index_select(dim, torch.tensor(index)))
        new.bias = nn.Parameter(old.bias.data[index] if dim == 0 else old.bias.data)
        parent, _, child = place.rpartition(".")
        setattr(base.get_submodule(parent), child, new)

    for layer in plan.layers:
        channels = [head * size + i for head in layer.heads for i in range(size)]
        for linear in ("query", "key", "value"):
            keep(row.at(layer.index, linear), 0, channels)
        keep(row.at(layer.index, "attention_out"), 1, channels)
        keep(row.at(layer.index, "ffn_in"), 0, list(layer.neurons))
        keep(row.at(layer.index, "ffn_out"), 1, list(layer.neurons))
        attention = base.get_submodule(row.at(layer.index, "query").rpartition(".")[0])
        for name in ("n_heads", "num_attention_heads"):
            if hasattr(attention, name):
                setattr(attention, name, len(layer.heads))
        for name in ("dim", "all_head_size"):
            if hasattr(attention, name):
                setattr(attention, name, len(channels))
    return base


@pytest.mark.parametrize("rslora", [False, True])
def test_rank_cut_keeps_the_scaling(rslora: bool, tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path, use_rslora=rslora, alpha=5.0)
    batch, scaling = make_batch("bert"), 5.0 / (2.0 if rslora else 4)
    plan = random_plan(model, budget=ONLY_RANKS)
    with gated(model.get_base_model(), plan_gates(plan, ranks=True)):
        expected = outputs(model, batch)
    lightpeft.cut(model, plan, config=DROP)
    assert {len(module.ranks) for module in plan.kept_modules} > {1}
    assert_same(outputs(model, batch), expected)
    for module in find_modules(model):
        assert module.scaling == scaling
        alpha, rank = module.layer.lora_alpha["default"], module.layer.r["default"]
        assert alpha / (rank**0.5 if rslora else rank) == pytest.approx(scaling)


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments .'made_for_a_cut_base")
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_stock_peft_rebuilds_the_adapter_on_a_base_cut_by_hand(
    name: str, rslora: bool, tmp_path: Path
) -> None:
    folder = save_base(name, tmp_path / "base")
    model, batch = with_lora(load_base(folder), use_rslora=rslora), make_batch(name)
    plan = random_plan(model)
    lightpeft.cut(model, plan, config=DROP)
    light = lightpeft.save(model, tmp_path / "light")
    stock = PeftModel.from_pretrained(cut_by_hand(load_base(folder), plan), str(light))
    assert_same(outputs(stock, batch), outputs(model, batch))


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments .'made_for_a_cut_base")
def test_patterns_are_exact_names_with_escaped_dots(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path / "base")
    plan = random_plan(model)
    lightpeft.cut(model, plan, config=DROP)
    lightpeft.save(model, tmp_path / "light")
    config = LoraConfig.from_pretrained(str(tmp_path / "light"))
    ranks = {re.escape(module.name): len(module.ranks) for module in plan.kept_modules}
    assert config.rank_pattern == ranks
    assert config.alpha_pattern == {name: 6.0 / 4 * rank for name, rank in ranks.items()}
    assert config.target_modules == {module.name for module in plan.kept_modules}


def test_layer_1_and_layer_11_do_not_clash(tmp_path: Path) -> None:
    """`layer.1` ends names that `layer.11` also ends: only exact names tell them apart."""
    folder = save_base("bert", tmp_path / "base", layers=12, width=16, heads=2, neurons=8)
    model, batch = with_lora(load_base(folder)), make_batch("bert")
    names = [module.name for module in find_modules(model)]
    scores = lightpeft.Scores(
        heads=tuple(torch.rand(2) for _ in range(12)),
        neurons=tuple(torch.rand(8) for _ in range(12)),
        ranks={name: torch.rand(4) + 9 * (".11." in name) for name in names},
        modules={name: float(".1." not in name or "query" in name) for name in names},
        steps=1,
        methods={"base": "fisher", "module": "activation", "rank": "taylor"},
    )
    plan = make_plan(scores, find_anatomy(model), Budget(modules=5 / 72, ranks=0.5))
    kept = {module.name: len(module.ranks) for module in plan.modules}
    assert all(rank == 4 for name, rank in kept.items() if ".11." in name)
    assert all(kept[n] == 0 for n in names if ".1." in n and "query" not in n)
    with gated_light(model, plan):
        expected = outputs(model, batch)
    lightpeft.cut(model, plan, config=DROP)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert {m.name: m.rank for m in find_modules(loaded)} == {n: r for n, r in kept.items() if r}
    assert_same(outputs(loaded, batch), expected)


def gated_light(model: PeftModel, plan: Plan) -> object:
    """Gates of the cut for 12 layers of 2 heads of 8."""
    row = ROWS["bert"]
    gates = {}
    for layer in plan.layers:
        heads, neurons = torch.zeros(2), torch.zeros(8)
        heads[list(layer.heads)], neurons[list(layer.neurons)] = 1, 1
        gates[row.at(layer.index, "attention_out")] = heads.repeat_interleave(8)
        gates[row.at(layer.index, "ffn_out")] = neurons
    for module in plan.modules:
        closed = torch.zeros(4)
        closed[list(module.ranks)] = 1
        gates[f"{module.name}.lora_B.default"] = closed
    return gated(model.get_base_model(), gates)


def test_short_target_names_work_too(tmp_path: Path) -> None:
    """`query` and `output.dense` as users write them; the saved configuration names modules in full."""
    folder = save_base("bert", tmp_path / "base")
    model = with_lora(load_base(folder), targets=("query", "output.dense"))
    batch, plan = make_batch("bert"), random_plan(model)
    lightpeft.cut(model, plan)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert_same(outputs(loaded, batch), outputs(model, batch))
    assert set(loaded.peft_config["default"].target_modules) == {m.name for m in plan.kept_modules}


def test_rank_and_alpha_patterns_of_the_user_are_followed(tmp_path: Path) -> None:
    folder = save_base("bert", tmp_path / "base")
    patterns = {"rank_pattern": {"query": 2, "value": 6}, "alpha_pattern": {"query": 9}}
    model = with_lora(load_base(folder), targets=("query", "value", "key"), **patterns)
    batch = make_batch("bert")
    plan = random_plan(model, budget=Budget(modules=0.2, ranks=0.4))
    before = {module.name: module.scaling for module in find_modules(model)}
    with gated(model.get_base_model(), plan_gates(plan, ranks=True)):
        expected = outputs(model, batch)
    lightpeft.cut(model, plan, config=DROP)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert_same(outputs(loaded, batch), expected)
    after = {module.name: module.scaling for module in find_modules(loaded)}
    assert after == {name: pytest.approx(before[name]) for name in after}


def test_saved_adapter_has_the_small_tensors(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path / "base")
    plan = random_plan(model)
    lightpeft.cut(model, plan)
    folder = lightpeft.save(model, tmp_path / "light")
    saved = load_file(folder / "adapter_model.safetensors")
    found = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(tensor)
        for key, tensor in saved.items()
        if key.endswith(".lora_A.weight")
    }
    assert found == {module.name: len(module.ranks) for module in plan.kept_modules}


@pytest.mark.parametrize(
    ("options", "more"),
    [({}, 0), ({"use_dora": True}, 1), ({"lora_bias": True}, 1), ({"bias": "all"}, 0)],
    ids=str,
)
def test_every_variant_of_lora_is_found_with_all_of_its_weights(
    options: dict[str, object], more: int, tmp_path: Path
) -> None:
    """`more`: vectors of d_out entries beside A and B."""
    model = tiny_peft("bert", tmp_path, **options)
    modules = find_modules(model)
    assert [module.name for module in modules] == lora_names(model)
    for module in modules:
        (d_in, d_out), trained = module.widths, {id(p) for p in module.parameters}
        assert sum(p.numel() for p in module.parameters) == 4 * (d_in + d_out) + more * d_out
        inside = module.layer.named_parameters()
        assert trained == {id(p) for name, p in inside if "lora_" in name}


def test_only_the_active_one_of_two_adapters_is_found(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path, targets=("query", "value"))
    model.add_adapter("second", LoraConfig(r=2, target_modules=["query", "key"]))
    assert {module.adapter for module in find_modules(model)} == {"default"}
    model.set_adapter("second")
    found = find_modules(model)
    assert {(module.adapter, module.rank) for module in found} == {("second", 2)}
    assert {module.name.rpartition(".")[2] for module in found} == {"query", "key"}


def test_merged_lora_is_refused(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path)
    model.merge_adapter()
    with pytest.raises(AnatomyError, match="unmerge_adapter"):
        find_modules(model)


def test_lora_on_an_embedding_is_named_and_left_whole(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path, targets=("query", "word_embeddings"))
    assert {module.name.rpartition(".")[2] for module in find_modules(model)} == {"query"}
    assert limits_of_form(model) == ["bert.embeddings.word_embeddings: its LoRA on an embedding stays whole"]


def test_lora_on_an_embedding_alone_is_refused(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path, targets=("word_embeddings",))
    with pytest.raises(AnatomyError, match="'default', but no LoRA module was found that can be cut"):
        find_modules(model)


def test_lora_on_a_convolution_is_refused(tmp_path: Path) -> None:
    model = BY_NAME["vit"].build()
    peft = with_targets(model, "query", "projection")
    with pytest.raises(AnatomyError, match=r"projection carries LoRA on a Conv2d.*target_modules"):
        find_modules(peft)


def with_targets(base: PreTrainedModel, *targets: str) -> PeftModel:
    model = get_peft_model(base, LoraConfig(target_modules=list(targets)))
    assert isinstance(model, PeftModel)
    return model


def test_a_plain_model_has_no_modules(tmp_path: Path) -> None:
    assert find_modules(load_base(save_base("bert", tmp_path))) == ()


def test_lora_on_the_pooler_survives_a_cut_and_a_load(tmp_path: Path) -> None:
    """A module outside the encoder layers is scored and cut by rank like the others."""
    folder = save_base("bert", tmp_path / "base")
    model = with_lora(load_base(folder), targets=("query", "pooler.dense"))
    batch, scores = make_batch("bert"), random_scores(model)
    scores.modules["bert.pooler.dense"] = 9.0
    plan = make_plan(scores, find_anatomy(model), Budget(modules=0.5, ranks=0.25))
    assert "bert.pooler.dense" in {module.name for module in plan.kept_modules}
    lightpeft.cut(model, plan, batch=batch)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert_same(outputs(loaded, batch), outputs(model, batch))
