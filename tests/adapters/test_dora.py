"""DoRA under a cut: the factors that it puts on a weight's rows survive, whatever goes from the weight."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.models import assert_identical, gated
from tests.support.probing import agree, kept_units, outputs, plan_gates, random_scores
from tests.support.zoo import BY_NAME
from torch import Tensor

import lightpeft
from lightpeft import Budget, Plan, Scores, SurgeryConfig, find_anatomy, make_plan
from lightpeft.linears import matrix
from lightpeft.surgery import record_of

UNEVEN = Budget(heads=0.4, neurons=0.4, modules=0.3, ranks=0.4, heads_scope="global", neurons_scope="global")


def with_gates(model: PeftModel, seed: int) -> Scores:
    """Scores of an estimation with trained gates, some of them negative."""
    scores, generator = random_scores(model, seed), torch.Generator().manual_seed(seed)
    gates = {}
    for layer in find_anatomy(model).layers:
        for units in layer.units:
            values = 2 * torch.rand(units.count, generator=generator) - 0.5
            gates[units.out] = values.repeat_interleave(units.size)
    return Scores(**vars(scores) | {"gates": gates})


def gains(model: PeftModel, ranks: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """magnitude / ‖W + scaling · B A‖ per row, of every module, by hand."""
    found = {}
    for name, layer in model.get_base_model().named_modules():
        if hasattr(layer, "lora_magnitude_vector") and layer.lora_magnitude_vector:
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            kept = slice(None) if ranks is None else ranks[name]
            weight = matrix(layer.base_layer) + layer.scaling["default"] * b[:, kept] @ a[kept]
            found[name] = (layer.lora_magnitude_vector["default"].weight / weight.norm(dim=1)).detach()
    return found


@pytest.mark.parametrize("fold", [True, False], ids=["fold", "drop"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("animal", ["bert", "gpt2", "llama", "t5"])
def test_cut_computes_what_the_gated_model_did(animal: str, seed: int, fold: bool, tmp_path: Path) -> None:
    """With trained gates folded, which change the norms of the rows too."""
    chosen = BY_NAME[animal]
    model, batch = chosen.with_peft("dora"), chosen.batch(padded=True)
    scores = with_gates(model, seed)
    plan = make_plan(scores, find_anatomy(model), UNEVEN)
    gates = plan_gates(chosen, model, plan, ranks=not fold)
    gates = {name: values * scores.gates.get(name, torch.ones(1)) for name, values in gates.items()}
    with gated(model.get_base_model(), gates):
        expected = outputs(model, batch)
    config = SurgeryConfig(fold_removed=fold, compensate=False)
    lightpeft.cut(model, plan, scores=scores, batch=batch, config=config)
    agree(outputs(model, batch), expected)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path), base=chosen.build())
    assert_identical(loaded.state_dict(), model.state_dict())
    assert torch.equal(outputs(loaded, batch), outputs(model, batch))


def cut_rows(model: PeftModel, plan: Plan, name: str) -> Tensor:
    """The outputs of a linear that stay, from the shapes of heads and neurons."""
    layer = next(one for one in plan.layers if f".{one.index}." in name)
    if name.endswith(("query", "key", "value")):
        return torch.tensor([head * 8 + i for head in layer.heads for i in range(8)])
    if name.endswith("intermediate.dense"):
        return torch.tensor(layer.neurons)
    return torch.arange(32)


@pytest.mark.parametrize("fold", [True, False], ids=["fold", "drop"])
def test_row_factors_stay_and_those_of_removed_modules_are_recorded(fold: bool) -> None:
    model = BY_NAME["bert"].with_peft("dora")
    plan = make_plan(random_scores(model), find_anatomy(model), UNEVEN)
    ranks = None if fold else {m.name: torch.tensor(m.ranks, dtype=torch.int64) for m in plan.modules}
    before = gains(model, ranks)
    lightpeft.cut(model, plan, config=SurgeryConfig(fold_removed=fold, compensate=False))
    after, record = gains(model), record_of(model)
    assert record is not None
    assert record.row_factors.keys() == {module.name for module in plan.removed_modules}
    assert after.keys() == {module.name for module in plan.kept_modules}
    for name, found in (after | record.row_factors).items():
        torch.testing.assert_close(found, before[name][cut_rows(model, plan, name)], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, torch.ones(()), atol=0.01)


def test_magnitudes_change_only_where_the_weight_lost_something() -> None:
    """Only heads go: the FFN's magnitudes keep their bits' meaning, the output projections' follow."""
    model = BY_NAME["bert"].with_peft("dora")
    base = model.get_base_model()
    budget = Budget(heads=0.5, neurons=0, modules=0, ranks=0)
    names = [f"bert.encoder.layer.0.{end}" for end in ("intermediate.dense", "attention.output.dense")]

    def magnitude(name: str) -> Tensor:
        value: Tensor = base.get_submodule(name).lora_magnitude_vector["default"].weight
        return value.detach().clone()

    before = [magnitude(name) for name in names]
    lightpeft.cut(model, make_plan(random_scores(model), find_anatomy(model), budget))
    torch.testing.assert_close(magnitude(names[0]), before[0])
    assert (magnitude(names[1]).abs() < before[1].abs() * 0.99).all()


def test_compensation_counts_the_row_factors() -> None:
    """What the cut inputs gave on average: gain · (W + ΔW)[:, cut] · mean."""
    model = BY_NAME["bert"].with_peft("dora")
    scores, factors = random_scores(model), gains(model)
    layers = find_anatomy(model).layers
    means = {u.out: torch.randn(u.count * u.size) for layer in layers for u in layer.units}
    scores = Scores(**vars(scores) | {"means": means})
    plan, base = make_plan(scores, find_anatomy(model), UNEVEN), model.get_base_model()
    expected = {}
    for name, kept in kept_units(model, plan).items():
        layer, lost = base.get_submodule(name), means[name].clone()
        size = 8 if "attention" in name else 1
        lost.view(-1, size)[list(kept)] = 0
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = layer.base_layer.weight + layer.scaling["default"] * b @ a
        expected[name] = (layer.base_layer.bias + factors[name] * (weight @ lost)).detach()
    lightpeft.cut(model, plan, scores=scores)
    for name, bias in expected.items():
        layer = base.get_submodule(name)
        torch.testing.assert_close(getattr(layer, "base_layer", layer).bias, bias, rtol=1e-4, atol=1e-5)
