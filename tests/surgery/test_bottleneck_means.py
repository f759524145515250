"""Bottleneck neurons that go: their mean output takes their place, or nothing; the up bias stays always."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.forms import module_names
from tests.support.models import assert_identical
from tests.support.probing import agree, outputs, random_scores
from tests.support.zoo import BY_NAME
from torch import Tensor

import lightpeft
from lightpeft import Budget, Plan, Scores, SurgeryConfig, find_anatomy, make_plan
from lightpeft.linears import matrix
from lightpeft.surgery import record_of

MODULES_ONLY = Budget(heads=0, neurons=0, modules=0.4, ranks=0.4)
EVERYTHING = Budget(heads=0.4, neurons=0.4, modules=0.4, ranks=0.4, heads_scope="global")
SCALING = 1.5

pytestmark = [
    pytest.mark.parametrize("form", ["sequential", "parallel"]),
    pytest.mark.parametrize("animal", ["bert", "gpt2", "llama"]),
]


def planned(animal: str, form: str, budget: Budget) -> tuple[PeftModel, Plan, Scores]:
    """A model, a plan, and scores with means of the neurons and of the base's units."""
    model = BY_NAME[animal].with_peft(form, rank=5)
    scores = random_scores(model)
    means = {gated: torch.randn(5) for gated in module_names(model).values()}
    if budget is EVERYTHING:
        layers = find_anatomy(model).layers
        means |= {units.out: torch.randn(units.count * units.size) for one in layers for units in one.units}
    plan = make_plan(scores, find_anatomy(model), budget)
    assert plan.removed_modules
    assert any(0 < len(module.ranks) < 5 for module in plan.modules)
    return model, plan, Scores(**vars(scores) | {"means": means})


def bias_of(linear: torch.nn.Module) -> Tensor:
    bias: Tensor = linear.bias
    return torch.zeros(32) if bias is None else bias.detach().clone()


def expected_biases(model: PeftModel, plan: Plan, scores: Scores, compensate: bool) -> dict[str, Tensor]:
    """By hand: of the up projection where the module stays, of the base's linear where it goes."""
    base, found = model.get_base_model(), {}
    for module in plan.modules:
        layer = base.get_submodule(module.name)
        up, linear = layer.bottleneck_up["default"], layer.get_base_layer()
        gone = sorted(set(range(5)) - set(module.ranks))
        mean = scores.means[f"{module.name}.bottleneck_up.default"][gone]
        lost = up.weight[:, gone] @ mean if compensate else torch.zeros(32)
        if module.ranks:
            found[module.name] = (up.bias + lost).detach()
        else:
            found[module.name] = (bias_of(linear) + SCALING * (up.bias + lost)).detach()
        if module.name in scores.means and not module.ranks and compensate:
            units = next(u for one in find_anatomy(model).layers for u in one.units if u.out == module.name)
            kept = {u.out: k for one, w in zip(find_anatomy(model).layers, plan.layers, strict=True)
                    for u, k in one.with_kept(w.heads, w.neurons)}[module.name]  # fmt: skip
            cut = scores.means[module.name].clone()
            cut[list(units.channels(kept))] = 0
            found[module.name] += (matrix(linear) @ cut).detach()
    return found


@pytest.mark.parametrize("budget", [MODULES_ONLY, EVERYTHING], ids=["modules only", "everything"])
@pytest.mark.parametrize("compensate", [True, False], ids=["means", "nothing"])
def test_biases_are_those_computed_by_hand(
    animal: str, form: str, compensate: bool, budget: Budget, tmp_path: Path
) -> None:
    model, plan, scores = planned(animal, form, budget)
    expected = expected_biases(model, plan, scores, compensate)
    lightpeft.cut(model, plan, scores=scores, config=SurgeryConfig(compensate=compensate))
    base = model.get_base_model()
    for module in plan.modules:
        layer = base.get_submodule(module.name)
        found = layer.bottleneck_up["default"].bias if module.ranks else layer.bias
        torch.testing.assert_close(found, expected[module.name], rtol=1e-5, atol=1e-5)
    record = record_of(model)
    assert record is not None
    assert record.constants.keys() == {module.name for module in plan.removed_modules}
    loaded = lightpeft.load(lightpeft.save(model, tmp_path), base=BY_NAME[animal].build())
    assert_identical(loaded.state_dict(), model.state_dict())


def test_neurons_that_never_change_are_replaced_exactly(animal: str, form: str) -> None:
    """Their mean is all that they put out, so the function stays."""
    zoo = BY_NAME[animal]
    model, plan, scores = planned(animal, form, MODULES_ONLY)
    base, batch, means = model.get_base_model(), zoo.batch(padded=True), dict(scores.means)
    for module in plan.modules:
        down = base.get_submodule(module.name).bottleneck_down["default"]
        gone = sorted(set(range(5)) - set(module.ranks))
        with torch.no_grad():
            down.weight[gone] = 0
            down.bias[gone] = 1 + torch.rand(len(gone))
        means[f"{module.name}.bottleneck_up.default"] = torch.nn.functional.gelu(down.bias).detach()
    before = outputs(model, batch)
    report = lightpeft.cut(model, plan, scores=Scores(**vars(scores) | {"means": means}), batch=batch)
    assert report.peft_after < 0.6 * report.peft_before
    agree(outputs(model, batch), before)


def test_the_optimizer_keeps_the_moments_of_a_shifted_bias(animal: str, form: str) -> None:
    zoo = BY_NAME[animal]
    model, plan, scores = planned(animal, form, MODULES_ONLY)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    model(**zoo.batch(padded=True, labels=True)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    kept = plan.kept_modules[0]
    layer = model.get_base_model().get_submodule(kept.name)
    up, down = layer.bottleneck_up["default"], layer.bottleneck_down["default"]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in (up.bias, up.weight, down.weight, down.bias)]
    ranks = list(kept.ranks)
    wanted = [moments[0], moments[1][:, ranks], moments[2][ranks], moments[3][ranks]]
    lightpeft.cut(model, plan, optimizer, scores=scores)
    for parameter, moment in zip((up.bias, up.weight, down.weight, down.bias), wanted, strict=True):
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moment)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained
