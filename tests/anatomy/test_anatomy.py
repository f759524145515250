"""Where the units are, and what is refused because they cannot be found or cut."""

from pathlib import Path

import pytest
import torch
from tests.support.models import HEADS, LAYERS, NAMES, NEURONS, ROWS, WIDTH, load_base, save_base, with_lora
from torch import nn
from transformers import AutoModel

from lightpeft import AnatomyError, find_anatomy
from lightpeft.anatomy import base_of


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_heads_neurons_and_names_are_found(name: str, tmp_path: Path) -> None:
    anatomy, row = find_anatomy(load_base(save_base(name, tmp_path))), ROWS[name]
    assert anatomy.model_type == name
    assert len(anatomy.layers) == LAYERS
    for i, layer in enumerate(anatomy.layers):
        assert layer.index == i
        assert (layer.heads, layer.neurons) == (HEADS, NEURONS)
        attention, ffn = layer.units
        assert attention.size == WIDTH // HEADS
        assert attention.linears == tuple(row.at(i, k) for k in ("query", "key", "value", "attention_out"))
        assert ffn.linears == (row.at(i, "ffn_in"), row.at(i, "ffn_out"))


def test_lora_changes_nothing_about_the_anatomy(name: str, tmp_path: Path) -> None:
    folder = save_base(name, tmp_path)
    assert find_anatomy(with_lora(load_base(folder))) == find_anatomy(load_base(folder))


def test_an_encoder_without_a_head_has_shorter_names(name: str, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(save_base(name, tmp_path))
    anatomy = find_anatomy(model)
    assert model.get_submodule(anatomy.layers[0].attention.out).in_features == WIDTH


def test_parameters_are_those_of_the_layers(name: str, tmp_path: Path) -> None:
    model = load_base(save_base(name, tmp_path))
    counted = sum(p.numel() for k, p in model.named_parameters() if ".layer." in k)
    anatomy = find_anatomy(model)
    assert anatomy.parameters == counted
    assert f"{counted:,} parameters" in anatomy.describe()


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_the_cost_of_a_unit_is_its_weights(name: str, kind: str, tmp_path: Path) -> None:
    layer = find_anatomy(load_base(save_base(name, tmp_path))).layers[0]
    size = WIDTH // HEADS
    costs = {"heads": 3 * size * (WIDTH + 1) + size * WIDTH, "neurons": 2 * WIDTH + 1}
    fewer = {kind: range(1, HEADS if kind == "heads" else NEURONS)}
    assert layer.parameters() - layer.parameters(**fewer) == costs[kind]


def test_a_module_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(AnatomyError, match="found Linear"):
        base_of(nn.Linear(2, 2))


class PackedLinear(nn.Linear):
    """Like a quantised linear: a subclass whose weight has another shape and a scale beside it."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__(old.in_features, old.out_features)
        packed = old.weight.detach().reshape(-1, 1).mul(10).to(torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.scale = torch.ones(1)


class ScaledLinear(nn.Linear):
    """Like an 8-bit linear: weight of the usual shape, and a scale per row that a cut would forget."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__(old.in_features, old.out_features)
        self.weight = nn.Parameter(old.weight.detach().to(torch.int8), requires_grad=False)
        self.scale = torch.ones(old.out_features)


@pytest.mark.parametrize("kind", [PackedLinear, ScaledLinear])
@pytest.mark.parametrize("linear", ["query", "attention_out", "ffn_in", "ffn_out"])
def test_quantised_linears_have_the_units_of_floats(kind: type, linear: str, tmp_path: Path) -> None:
    model, place = load_base(save_base("bert", tmp_path)), ROWS["bert"].at(1, linear)
    wanted = find_anatomy(model)
    parent, _, child = place.rpartition(".")
    setattr(model.get_submodule(parent), child, kind(model.get_submodule(place)))
    assert find_anatomy(model) == wanted


def test_a_model_cut_by_someone_else_is_refused(tmp_path: Path) -> None:
    model = load_base(save_base("bert", tmp_path))
    attention = model.get_submodule("bert.encoder.layer.2.attention.self")
    attention.num_attention_heads = 3
    with pytest.raises(AnatomyError, match=r"layer\.2.*says 3, but its linears have 4 heads of 8"):
        find_anatomy(model)
