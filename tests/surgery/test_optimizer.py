"""The optimizer follows the cut: surviving entries keep their moments, removed parameters leave."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.models import gated, load_base, make_batch, save_base, tiny_peft, with_lora
from tests.support.plans import plan_gates, random_plan
from torch import Tensor

import lightpeft
from lightpeft import Plan, SurgeryConfig

DROP = SurgeryConfig(fold_removed=False, compensate=False)


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def step(model: PeftModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    model.train()
    model(**make_batch(model.get_base_model().config.model_type, labels=True, seed=seed)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def two_runs(
    name: str, folder: Path, kind: type, **options: float
) -> tuple[PeftModel, PeftModel, torch.optim.Optimizer, torch.optim.Optimizer]:
    """Two equal models after two equal steps."""
    base = save_base(name, folder)
    models = with_lora(load_base(base)), with_lora(load_base(base))
    optimizers = [kind(trainable(model).values(), lr=1e-2, **options) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer, 11)
        step(model, optimizer, 12)
    return *models, *optimizers


def surviving(tensor: Tensor, name: str, plan: Plan) -> Tensor | None:
    """The part of a LoRA tensor, or of its moment, that the plan keeps; None if the module goes."""
    if ".lora_" not in name:
        return tensor
    place = name.removeprefix("base_model.model.").split(".lora_")[0]
    ranks = {module.name: list(module.ranks) for module in plan.modules}[place]
    if not ranks:
        return None
    gates = plan_gates(plan, ranks=False)
    layer = next(entry for entry in plan.layers if f"layer.{entry.index}." in place)
    size = len(gates[next(iter(gates))]) // layer.head_count
    channels = [head * size + i for head in layer.heads for i in range(size)]
    is_a = ".lora_A." in name
    if place in gates:
        inputs = gates[place].nonzero().flatten()
        return tensor[ranks][:, inputs] if is_a else tensor[:, ranks]
    outputs = list(layer.neurons) if place.endswith(("intermediate.dense", "lin1")) else channels
    return tensor[ranks] if is_a else tensor[:, ranks][outputs]


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_moments_are_sliced_with_their_parameters(name: str, tmp_path: Path) -> None:
    whole, light, whole_optimizer, optimizer = two_runs(name, tmp_path, torch.optim.AdamW)
    plan = random_plan(whole)
    lightpeft.cut(light, plan, optimizer, config=DROP)
    left = trainable(light)
    for key, parameter in trainable(whole).items():
        moments = whole_optimizer.state[parameter]
        expected = surviving(parameter.detach(), key, plan)
        if expected is None:
            assert key not in left
            continue
        assert torch.equal(left[key], expected), key
        found = optimizer.state[left[key]]
        for moment in ("exp_avg", "exp_avg_sq"):
            sliced = surviving(moments[moment], key, plan)
            assert sliced is not None
            assert torch.equal(found[moment], sliced), key
            assert found[moment].is_contiguous()
        assert found["step"] == moments["step"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.RMSprop, {}),
    ],
)
def test_the_next_step_equals_the_gated_runs(kind: type, options: dict[str, float], tmp_path: Path) -> None:
    """Gates close cut units exactly, so surviving entries get the same gradients cut or gated."""
    whole, light, whole_optimizer, optimizer = two_runs("bert", tmp_path, kind, **options)
    plan = random_plan(whole)
    lightpeft.cut(light, plan, optimizer, config=DROP)
    with gated(whole.get_base_model(), plan_gates(plan, ranks=True)):
        step(whole, whole_optimizer, 13)
    step(light, optimizer, 13)
    left = trainable(light)
    for key, parameter in trainable(whole).items():
        expected = surviving(parameter.detach(), key, plan)
        if expected is not None:
            torch.testing.assert_close(left[key].detach(), expected, rtol=1e-5, atol=1e-6)


def test_removed_parameters_leave_groups_and_state(tmp_path: Path) -> None:
    _, light, _, optimizer = two_runs("bert", tmp_path, torch.optim.AdamW)
    before = trainable(light)
    lightpeft.cut(light, random_plan(light), optimizer)
    after = {id(p) for p in trainable(light).values()}
    assert len(after) < len(before)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == after
    assert {id(p) for p in optimizer.state} == after


def test_groups_keep_their_identity_and_options(tmp_path: Path) -> None:
    model = tiny_peft("bert", tmp_path)
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(
        [{"params": parameters[::2], "lr": 0.1}, {"params": parameters[1::2], "lr": 0.2}]
    )
    groups = optimizer.param_groups
    first, second = groups
    lightpeft.cut(model, random_plan(model), optimizer)
    assert optimizer.param_groups is groups
    assert groups[0] is first
    assert groups[1] is second
    assert [group["lr"] for group in groups] == [0.1, 0.2]


def test_the_optimizer_inside_accelerates_wrapper_follows(tmp_path: Path) -> None:
    from accelerate import Accelerator

    model = tiny_peft("bert", tmp_path)
    optimizer = Accelerator(cpu=True).prepare_optimizer(torch.optim.AdamW(trainable(model).values()))
    step(model, optimizer, 11)
    lightpeft.cut(model, random_plan(model), optimizer)
    step(model, optimizer, 12)
    assert {id(p) for p in optimizer.optimizer.state} == {id(p) for p in trainable(model).values()}
