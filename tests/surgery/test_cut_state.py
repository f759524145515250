"""What a cut leaves in memory: small tensors of their own, everything else untouched, honest head counts."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.models import (
    HEADS,
    LAYERS,
    NAMES,
    NEURONS,
    ROWS,
    WIDTH,
    assert_identical,
    assert_same,
    gated,
    load_base,
    make_batch,
    outputs,
    save_base,
    snapshot,
    tiny_peft,
    with_lora,
)
from tests.support.plans import UNEVEN, plan_gates, random_plan, random_scores

import lightpeft
from lightpeft import Budget, Plan, PlanError, SurgeryConfig, find_anatomy, make_plan

PLAIN = SurgeryConfig(fold_removed=False, fold_gates=False, compensate=False)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def expected_shapes(name: str, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shapes of every base linear and LoRA weight that the plan speaks of, by state-dict name."""
    row, size = ROWS[name], WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {}
    ranks = {module.name: len(module.ranks) for module in plan.modules}
    for layer in plan.layers:
        channels, neurons = len(layer.heads) * size, len(layer.neurons)
        sides = dict.fromkeys(("query", "key", "value"), (channels, WIDTH))
        sides |= {"attention_out": (WIDTH, channels), "ffn_in": (neurons, WIDTH)}
        sides |= {"ffn_out": (WIDTH, neurons)}
        for linear, (d_out, d_in) in sides.items():
            place = row.at(layer.index, linear)
            start, rank = f"base_model.model.{place}", ranks[place]
            inner = f"{start}.base_layer" if rank else start
            shapes |= {f"{inner}.weight": (d_out, d_in), f"{inner}.bias": (d_out,)}
            if rank:
                shapes[f"{start}.lora_A.default.weight"] = (rank, d_in)
                shapes[f"{start}.lora_B.default.weight"] = (d_out, rank)
    return shapes


def test_state_dict_has_the_planned_shapes_and_only_those_tensors_moved(name: str, tmp_path: Path) -> None:
    model = tiny_peft(name, tmp_path)
    before = {k.replace(".base_layer", ""): v for k, v in snapshot(model).items()}
    plan = random_plan(model)
    lightpeft.cut(model, plan, config=PLAIN)
    after, shapes = model.state_dict(), expected_shapes(name, plan)
    assert {k: tuple(v.shape) for k, v in after.items() if k in shapes} == shapes
    moved = {key.replace(".base_layer", "") for key in shapes}
    for key, value in after.items():
        plain = key.replace(".base_layer", "")
        if plain not in moved:
            assert torch.equal(value, before[plain]), key
    assert not [k for k in after if ".lora_" in k and k not in shapes]


def test_output_projection_biases_stay_bit_identical(name: str, tmp_path: Path) -> None:
    model = tiny_peft(name, tmp_path)
    base, row = model.get_base_model(), ROWS[name]
    places = [row.at(i, linear) for i in range(LAYERS) for linear in ("attention_out", "ffn_out")]
    before = [base.get_submodule(place).bias.detach().clone() for place in places]
    lightpeft.cut(model, random_plan(model), config=PLAIN)
    assert all(
        torch.equal(base.get_submodule(place).bias, old) for place, old in zip(places, before, strict=True)
    )


def test_cut_tensors_own_small_storages(name: str, tmp_path: Path) -> None:
    model = tiny_peft(name, tmp_path)
    lightpeft.cut(model, random_plan(model))
    for key, tensor in model.state_dict().items():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), key
        assert tensor.is_contiguous(), key


def test_old_tensors_are_freed(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path)
    linear = model.get_base_model().get_submodule(ROWS["bert"].at(0, "ffn_in"))
    old = weakref.ref(linear.get_base_layer().weight.data.untyped_storage())
    storage_alive = linear.get_base_layer().weight.data_ptr()
    lightpeft.cut(model, random_plan(model))
    gc.collect()
    assert old() is None
    assert linear.weight.data_ptr() != storage_alive


def test_head_counts_follow(name: str, tmp_path: Path) -> None:
    model = tiny_peft(name, tmp_path)
    plan = random_plan(model)
    assert len({len(layer.heads) for layer in plan.layers}) > 1, "the plan should be uneven"
    lightpeft.cut(model, plan)
    found = find_anatomy(model)
    counts = [(layer.heads, layer.neurons) for layer in found.layers]
    assert counts == [(len(layer.heads), len(layer.neurons)) for layer in plan.layers]
    for units in (layer.attention for layer in found.layers):
        assert units is not None
        attention = model.get_base_model().get_submodule(units.module)
        width = attention.dim if name == "distilbert" else attention.all_head_size
        assert width == units.count * units.size
        assert units.size == WIDTH // HEADS


def test_lora_layers_know_their_new_sizes(name: str, tmp_path: Path) -> None:
    model = tiny_peft(name, tmp_path)
    plan = random_plan(model)
    lightpeft.cut(model, plan)
    base = model.get_base_model()
    for module in plan.kept_modules:
        layer = base.get_submodule(module.name)
        weight = layer.get_base_layer().weight
        assert (layer.out_features, layer.in_features) == weight.shape
        assert (layer.base_layer.out_features, layer.base_layer.in_features) == weight.shape
        assert layer.r["default"] == len(module.ranks)
    for module in plan.removed_modules:
        assert type(base.get_submodule(module.name)) is torch.nn.Linear


def test_report_counts_what_is_there(name: str, tmp_path: Path) -> None:
    model = tiny_peft(name, tmp_path)

    def count() -> tuple[int, int]:
        layers = [v.numel() for k, v in model.state_dict().items() if ".layer." in k]
        lora = [v.numel() for k, v in model.state_dict().items() if ".lora_" in k]
        return sum(layers) - sum(lora), sum(lora)

    before = count()
    plan = random_plan(model)
    report = lightpeft.cut(model, plan)
    assert (report.encoder_before, report.peft_before) == before
    assert (report.encoder_after, report.peft_after) == count()
    assert report.encoder_after < report.encoder_before
    assert (report.modules_before, report.modules_after) == (
        6 * LAYERS,
        len(plan.kept_modules),
    )
    assert f"{report.encoder_after:,}" in report.describe()


def test_parameter_objects_and_gradient_flags_survive(name: str, tmp_path: Path) -> None:
    model = tiny_peft(name, tmp_path)
    before = {k.replace(".base_layer", ""): p for k, p in model.named_parameters()}
    flags = {id(p): p.requires_grad for p in before.values()}
    lightpeft.cut(model, random_plan(model))
    for key, parameter in model.named_parameters():
        assert parameter is before[key.replace(".base_layer", "")], key
        assert parameter.requires_grad == flags[id(parameter)], key
        assert parameter.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_plain_base_without_peft_is_cut_too(name: str, tmp_path: Path) -> None:
    folder = save_base(name, tmp_path)
    plan = random_plan(with_lora(load_base(folder)))
    model, batch = load_base(folder), make_batch(name)
    with gated(model, plan_gates(plan, ranks=False)):
        expected = outputs(model, batch)
    lightpeft.cut(model, plan)
    assert_same(outputs(model, batch), expected)


def test_a_plan_that_keeps_all_changes_nothing(name: str, tmp_path: Path) -> None:
    model = tiny_peft(name, tmp_path)
    before = snapshot(model)
    nothing = Budget(heads=0, neurons=0, modules=0, ranks=0)
    plan = random_plan(model, budget=nothing)
    assert plan.cuts_nothing
    lightpeft.cut(model, plan)
    assert_identical(model.state_dict(), before)


def test_training_goes_on_after_the_cut(name: str, tmp_path: Path) -> None:
    model = tiny_peft(name, tmp_path)
    lightpeft.cut(model, random_plan(model))
    model.train()
    model(**make_batch(name, labels=True)).loss.backward()
    trained = [k for k, p in model.named_parameters() if p.grad is not None]
    assert trained == [k for k, p in model.named_parameters() if p.requires_grad]
    assert any(".lora_A." in k for k in trained)


def test_cutting_twice_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path)
    plan = random_plan(model)
    lightpeft.cut(model, plan)
    before = snapshot(model)
    with pytest.raises(PlanError, match="cut already"):
        lightpeft.cut(model, plan)
    assert_identical(model.state_dict(), before)


@pytest.mark.parametrize("fold", [True, False])
def test_compensation_shifts_biases_by_the_mean_of_what_went(name: str, fold: bool, tmp_path: Path) -> None:
    folder = save_base(name, tmp_path / "base")
    plain, shifted = with_lora(load_base(folder)), with_lora(load_base(folder))
    scores = random_scores(plain, means=True)
    plan = make_plan(scores, find_anatomy(plain), UNEVEN)
    expected = {}
    for place, closed in plan_gates(plan, ranks=False).items():
        layer = plain.get_base_model().get_submodule(place)
        a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
        whole = layer.get_base_layer().weight + 6.0 / 4 * b @ a
        lost = scores.means[place] * (1 - closed)
        expected[place] = (layer.get_base_layer().bias + whole @ lost).detach()
    lightpeft.cut(plain, plan, scores=scores, config=SurgeryConfig(fold_removed=fold, compensate=False))
    lightpeft.cut(shifted, plan, scores=scores, config=SurgeryConfig(fold_removed=fold))
    loaded = lightpeft.load(lightpeft.save(shifted, tmp_path / "light"))
    for model in (shifted, loaded):
        base = model.get_base_model()
        biases = {p: inner(base, p).bias.detach() for p in expected}
        assert_same(biases, expected)
        for place in expected:
            assert torch.equal(inner(base, place).weight, inner(plain.get_base_model(), place).weight)
    assert_identical(loaded.state_dict(), shifted.state_dict())


def inner(base: torch.nn.Module, place: str) -> torch.nn.Linear:
    layer = base.get_submodule(place)
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def test_compensation_restores_the_mean_output(tmp_path: Path) -> None:
    """With a constant input the compensated projection computes exactly what the whole one did."""
    model = tiny_peft("bert", tmp_path)
    scores = random_scores(model, means=True)
    place = ROWS["bert"].at(1, "ffn_out")
    layer = model.get_base_model().get_submodule(place).eval()
    mean = scores.means[place]
    expected = layer(mean[None])
    plan = make_plan(scores, find_anatomy(model), UNEVEN)
    lightpeft.cut(model, plan, scores=scores)
    kept = mean[list(plan.layers[1].neurons)]
    found = model.get_base_model().get_submodule(place).eval()(kept[None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_cut_and_verified(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_base("bert", tmp_path)
    model: PeftModel = with_lora(load_base(folder, dtype=dtype)).to(dtype)
    report = lightpeft.cut(model, random_plan(model))
    assert report.encoder_after < report.encoder_before
    weight = model.get_base_model().get_submodule(ROWS["bert"].at(0, "ffn_out")).weight
    assert weight.dtype == dtype
    assert weight.shape[1] < NEURONS
