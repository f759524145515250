"""Architectures that are not in the table: found by looking, where transformers' own code has them."""

import copy

import pytest
import torch
from tests.support.zoo import BART, BERT, BY_NAME, HEADS, LLAMA, NEURONS, TOKENS, VIT, WIDTH, Animal, Outs
from torch import nn
from transformers import MambaConfig, MambaModel

from lightpeft import AnatomyError, find_anatomy
from lightpeft.anatomy import FAMILIES, UNPROBED, Anatomy, Verdict, attach_verdict
from lightpeft.anatomy.discovery import discover

GPTJ = {
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": HEADS,
    "n_positions": 40,
    "rotary_dim": 4,
    "n_inner": NEURONS,
}


def _bert(name: str, prefix: str, attentions: tuple[str, ...] = ("eager", "sdpa"), **options: int) -> Animal:
    layer = f"{prefix}.encoder.layer.{{}}"
    outs = (
        Outs(f"{layer}.attention.output.dense", "heads", 2, HEADS),
        Outs(f"{layer}.output.dense", "neurons", 2, NEURONS),
    )
    return Animal(name, "text", BERT | options, outs, attentions=attentions)


def _decoder(name: str, attention: str, ffn: str, group: int = 1, **options: object) -> Animal:
    """GQA with two query heads per KV head where `group` is 2."""
    sizes = LLAMA | {"head_dim": 4} if group == 2 else BERT | {"num_key_value_heads": HEADS}
    outs = (
        Outs(f"model.layers.{{}}.{attention}", "heads", 2, 8 if group == 2 else HEADS, group=group),
        Outs(f"model.layers.{{}}.{ffn}", "neurons", 2, NEURONS),
    )
    return Animal(name, "causal", sizes | options, outs)


def _gptj(name: str) -> Animal:
    outs = (
        Outs("transformer.h.{}.attn.out_proj", "heads", 2, HEADS),
        Outs("transformer.h.{}.mlp.fc_out", "neurons", 2, NEURONS),
    )
    return Animal(name, "causal", GPTJ | TOKENS, outs, attentions=("eager",))


STRANGERS = (
    _bert("xlm-roberta-xl", "roberta"),
    _bert("roformer", "roformer", ("eager",), embedding_size=WIDTH),
    _bert("esm", "esm"),
    _bert("ernie", "ernie"),
    _bert("data2vec-text", "data2vec_text"),
    _bert("nystromformer", "nystromformer", ("eager",)),
    Animal(
        "biogpt",
        "causal",
        BERT,
        (
            Outs("biogpt.layers.{}.self_attn.out_proj", "heads", 2, HEADS),
            Outs("biogpt.layers.{}.fc2", "neurons", 2, NEURONS),
        ),
    ),
    _gptj("gptj"),
    _gptj("codegen"),
    _decoder("starcoder2", "self_attn.o_proj", "mlp.c_proj", group=2),
    _decoder("granite", "self_attn.o_proj", "mlp.down_proj", group=2),
    _decoder("stablelm", "self_attn.o_proj", "mlp.down_proj"),
    _decoder("olmo2", "self_attn.o_proj", "mlp.down_proj"),
    _decoder("cohere", "self_attn.o_proj", "mlp.down_proj"),
    Animal(
        "gpt_bigcode",
        "causal",
        {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": 40, "n_inner": NEURONS} | TOKENS,
        (
            Outs("transformer.h.{}.attn.c_proj", "heads", 2, HEADS, group=HEADS),
            Outs("transformer.h.{}.mlp.c_proj", "neurons", 2, NEURONS),
        ),
    ),
    Animal(
        "deit",
        "image",
        # Two classes classify images with it; without a name transformers cannot choose.
        VIT | {"architectures": ["DeiTForImageClassification"]},
        (
            Outs("deit.layers.{}.attention.o_proj", "heads", 2, HEADS),
            Outs("deit.layers.{}.mlp.fc2", "neurons", 2, NEURONS),
        ),
    ),
    *(
        Animal(
            name,
            "seq2seq",
            BART,
            tuple(
                Outs(f"model.{path}", kind, 2, units)
                for path, kind, units in (
                    ("encoder.layers.{}.self_attn.out_proj", "heads", HEADS),
                    ("encoder.layers.{}.fc2", "neurons", NEURONS),
                    ("decoder.layers.{}.self_attn.out_proj", "heads", HEADS),
                    ("decoder.layers.{}.fc2", "neurons", NEURONS),
                    ("decoder.layers.{}.encoder_attn.out_proj", "heads", HEADS),
                )
            ),
        )
        for name in ("pegasus", "marian")
    ),
)
FUSED = {"codegen", "gpt_bigcode"}


@pytest.fixture(params=STRANGERS, ids=lambda animal: animal.name)
def stranger(request: pytest.FixtureRequest) -> Animal:
    assert isinstance(request.param, Animal)
    return request.param


def places(anatomy: Anatomy) -> dict[str, tuple[str, int, int]]:
    """Kind, count and KV group of the units at every output projection."""
    return {
        units.out: (units.kind, units.count, units.group) for layer in anatomy.layers for units in layer.units
    }


def expected_places(animal: Animal) -> dict[str, tuple[str, int, int]]:
    return {
        outs.path.format(layer): (outs.kind, outs.units, outs.group)
        for outs in animal.outs
        for layer in range(outs.layers)
    }


def test_every_unit_is_found_and_nothing_else(stranger: Animal) -> None:
    assert stranger.name not in FAMILIES
    anatomy = find_anatomy(stranger.build(stranger.attentions[0]))
    assert places(anatomy) == expected_places(stranger)
    assert "found by looking" in anatomy.notes[0]
    assert anatomy.skippable == ()


def test_lora_changes_nothing(stranger: Animal) -> None:
    found = find_anatomy(stranger.with_lora(stranger.attentions[0]))
    assert found == find_anatomy(stranger.build(stranger.attentions[0]))


def test_the_costs_are_those_of_the_layers(stranger: Animal) -> None:
    base = stranger.build(stranger.attentions[0])
    layers = {outs.path.partition(".{}.")[0] for outs in stranger.outs}
    counted = sum(p.numel() for k, p in base.named_parameters() if any(k.startswith(f"{x}.") for x in layers))
    assert find_anatomy(base).parameters == counted


@pytest.mark.parametrize(
    "known", ["bert", "distilbert", "llama", "bart", "gpt2", "t5", "vit", "clip", "phi3"]
)
def test_looking_finds_what_the_table_says(known: str) -> None:
    """The hand-written rows, as an oracle for the eye."""
    animal = BY_NAME[known]
    base = animal.build(animal.attentions[0])
    expected = find_anatomy(base)
    base.config.model_type = "stranger"
    found = find_anatomy(base)
    assert places(found) == places(expected)
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        assert mine.name == theirs.name.replace("text layer", "text").replace("vision layer", "vision")
        for one, other in zip(mine.units, theirs.units, strict=True):
            assert set(one.linears) == set(other.linears)
            assert one.rows == other.rows
            assert {name for name, _ in one.follow} >= {
                name for name, _ in other.follow if name in ("num_heads", "n_heads", "num_attention_heads")
            }


def test_looking_is_deterministic_and_leaves_no_trace() -> None:
    base = BY_NAME["llama"].build()
    before = {name: dict(vars(module)) for name, module in base.named_modules()}
    assert discover(base)[0].layers == discover(base)[0].layers == "layers"
    assert {name: dict(vars(module)) for name, module in base.named_modules()} == before


@pytest.mark.parametrize("name", sorted(FUSED))
def test_a_fused_projection_stays_whole_until_a_probe_said_how_it_is_laid_out(name: str) -> None:
    (animal,) = (one for one in STRANGERS if one.name == name)
    base = animal.build(animal.attentions[0])
    assert all(layer.attention and layer.attention.fixed == UNPROBED for layer in find_anatomy(base).layers)
    attach_verdict(base, Verdict(layouts={"h heads": "blocks"}))
    assert all(layer.attention and layer.attention.fixed is None for layer in find_anatomy(base).layers)
    assert all(
        layer.attention and layer.attention.fixed is None
        for layer in find_anatomy(copy.deepcopy(base)).layers
    )


def test_what_was_refused_is_left_out_with_its_reason() -> None:
    base = BY_NAME["bert"].build()
    base.config.model_type = "stranger"
    attach_verdict(base, Verdict(refused={"encoder.layer neurons": "tired", "encoder.layer heads": "no way"}))
    anatomy = find_anatomy(base)
    assert all(layer.ffn is None for layer in anatomy.layers)
    assert all(layer.attention and layer.attention.fixed == "no way" for layer in anatomy.layers)
    assert "encoder.layer neurons: tired" in anatomy.describe()
    assert "(fixed: no way)" in anatomy.describe()


def test_whole_groups_where_the_verdict_says_so() -> None:
    base = BY_NAME["llama"].build()
    base.config.model_type = "stranger"
    assert all(layer.attention and layer.attention.splits_groups for layer in find_anatomy(base).layers)
    attach_verdict(base, Verdict(whole_groups=frozenset({"layers heads"})))
    for layer in find_anatomy(base).layers:
        assert layer.attention is not None
        assert (layer.attention.splits_groups, layer.attention.groups) == (False, 4)
        gone = {row.role: list(row.gone(8, [0, 1, 4, 5, 6, 7])) for row in layer.attention.rows}
        assert gone == {"query": list(range(8, 16)), "key": list(range(4, 8)), "value": list(range(4, 8))}


def test_a_model_without_attention_says_what_was_looked_for() -> None:
    base = MambaModel(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=9, state_size=2))
    with pytest.raises(AnatomyError, match=r"'mamba'.*looked in MambaModel for.*query, key and value"):
        find_anatomy(base)


def test_attention_that_cannot_be_read_says_what_it_has() -> None:
    base = BY_NAME["bert"].build()
    base.config.model_type = "berd"
    for layer in base.bert.encoder.layer:
        attention = layer.attention.self
        attention.first, attention.second = attention.query, attention.key
        del attention.query, attention.key
    expected = r"attention\.self.*attention_head_size 8.*value 32→32, first 32→32"
    with pytest.raises(AnatomyError, match=expected) as raised:
        find_anatomy(base)
    assert "Did you mean bert? Known: bert, roberta" in str(raised.value)


def test_head_counts_that_contradict_the_linears_are_not_believed() -> None:
    base = BY_NAME["bert"].build()
    base.config.model_type = "stranger"
    for layer in base.bert.encoder.layer:
        layer.attention.self.num_attention_heads = 3
    with pytest.raises(AnatomyError, match="does not know the architecture 'stranger'"):
        find_anatomy(base)


def test_linears_beside_the_attention_that_are_no_chain_are_said() -> None:
    base = BY_NAME["bert"].build()
    base.config.model_type = "stranger"
    for layer in base.bert.encoder.layer:
        layer.intermediate.dense = nn.Linear(WIDTH, 7)
    with torch.no_grad():
        anatomy = find_anatomy(base)
    assert all(layer.ffn is None for layer in anatomy.layers)
    assert "no neurons are cut: the linears beside the attention (intermediate.dense 32→7" in anatomy.notes[0]
