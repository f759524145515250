"""Every kind of optimizer follows a cut, starts anew with a warning, or is refused before the first step."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.models import load_base, make_batch, save_base, snapshot, with_lora
from tests.support.optimizers import OPTIMIZERS, OptimizerRow, trained
from tests.support.plans import UNEVEN, random_scores
from torch import Tensor

import lightpeft
from lightpeft import Budget, ConfigError, Plan, find_anatomy, make_plan
from lightpeft.edits import Journal
from lightpeft.surgery import require_followable
from lightpeft.surgery.optimizer import prepare_to_follow

WHOLE_BLOCKS = Budget(
    heads=0.4,
    neurons=0.4,
    modules=0.3,
    ranks=0.4,
    heads_scope="global",
    neurons_scope="global",
    min_heads=0,
    min_neurons=0,
)
KINDS = {"some of everything": UNEVEN, "whole blocks": WHOLE_BLOCKS}
SURVIVORS = [row for row in OPTIMIZERS.values() if row.outcome in ("follows", "anew")]
REFUSED = [row for row in OPTIMIZERS.values() if row not in SURVIVORS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> PeftModel:
    """Copied for every test, which is faster than to make it anew."""
    return with_lora(load_base(save_base("bert", tmp_path_factory.mktemp("base"))), bias="all")


def fresh(base: PeftModel) -> PeftModel:
    return copy.deepcopy(base)


def plan_of(model: PeftModel, budget: Budget) -> Plan:
    """With `whole blocks`, the first layer loses its attention and the last its FFN."""
    scores = random_scores(model)
    if budget.min_heads == 0:
        scores.heads[0].zero_()
        scores.neurons[2].zero_()
    plan = make_plan(scores, find_anatomy(model), budget)
    assert budget.min_heads or (not plan.layers[0].heads and not plan.layers[2].neurons)
    return plan


def step(model: PeftModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    model.train()
    model(**make_batch("bert", labels=True, seed=seed)).loss.backward()
    torch.nn.utils.clip_grad_norm_(trained(model), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def after_two_steps(row: OptimizerRow, base: PeftModel) -> tuple[PeftModel, torch.optim.Optimizer]:
    model = fresh(base)
    optimizer = row.make(model)
    step(model, optimizer, 11)
    step(model, optimizer, 12)
    return model, optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", SURVIVORS, ids=lambda row: row.name)
def test_the_run_goes_on(row: OptimizerRow, kind: str, base: PeftModel) -> None:
    model, optimizer = after_two_steps(row, base)
    plan = plan_of(model, KINDS[kind])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lightpeft.cut(model, plan, optimizer)
    assert [f"{type(optimizer).__name__} keeps state that cannot be cut" in str(w.message) for w in said] == [
        True
    ] * (row.outcome == "anew")
    before = snapshot(model)
    step(model, optimizer, 13)
    step(model, optimizer, 14)
    left = [parameter for parameter in trained(model) if parameter.numel()]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in left}
    assert {id(p) for p in optimizer.state} <= {id(p) for p in left}
    assert all(torch.isfinite(parameter).all() for parameter in left)
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters() if ".lora_B." in n)


def entries(state: dict[str, Any], before: torch.Size, slices: list[tuple[int, Tensor]]) -> dict[str, Any]:
    """What is left of a state, axis by axis: an axis as long as the parameter's dimension follows it."""
    found = dict(state)
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim():
            for dim, kept in slices:
                for axis, size in enumerate(value.shape):
                    if size == before[dim]:
                        found[key] = found[key].index_select(axis, kept)
    return found


@pytest.mark.parametrize(
    "row", [row for row in SURVIVORS if row.outcome == "follows"], ids=lambda row: row.name
)
def test_what_survives_keeps_its_state(row: OptimizerRow, base: PeftModel) -> None:
    """Of every pair on linears of two different widths, so that no axis can be taken for another."""
    model, optimizer = after_two_steps(row, base)
    journals: list[Journal] = []
    states = {p: {k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()}
              for p, s in optimizer.state.items()}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        real = Journal.__init__
        patch.setattr(Journal, "__init__", lambda self: (journals.append(self), real(self))[1])
        lightpeft.cut(model, plan_of(model, UNEVEN), optimizer)
    checked = 0
    for parameter, slices in journals[0].slices.items():
        shape = journals[0].shapes[parameter]
        if parameter not in optimizer.state or len(set(shape)) < len(shape):
            continue
        expected = entries(states[parameter], shape, slices)
        assert optimizer.state[parameter].keys() == expected.keys()
        for key, value in expected.items():
            found = optimizer.state[parameter][key]
            assert torch.equal(found, value) if isinstance(value, Tensor) else found == value, key
        checked += 1
    assert checked or row.name == "sgd"


@pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=lambda row: row.name)
def test_it_is_known_before_the_first_step(row: OptimizerRow, base: PeftModel) -> None:
    model = fresh(base)
    optimizer, before = row.make(model), snapshot(model)
    held, options = list(optimizer.state), [dict(group) for group in optimizer.param_groups]
    random_state = torch.get_rng_state()
    if row in REFUSED:
        with pytest.raises(ConfigError, match=f"(?s){row.outcome}.*adamw_torch"):
            require_followable(optimizer, model)
    elif row.outcome == "anew":
        with pytest.warns(UserWarning, match=f"{type(optimizer).__name__} cannot be cut.*start anew"):
            require_followable(optimizer, model)
    else:
        require_followable(optimizer, model)
    assert list(optimizer.state) == held
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [dict(group) for group in optimizer.param_groups] == options
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_square_pair_is_not_taken_crosswise(tmp_path: Path) -> None:
    """Rows and columns of a factored state have the same length where the pair is square."""
    model = with_lora(load_base(save_base("bert", tmp_path)), rank=32, targets=("intermediate.dense",))
    optimizer = torch.optim.Adafactor(trained(model), lr=1e-2)
    step(model, optimizer, 11)
    parameter = next(p for n, p in model.named_parameters() if ".lora_A." in n)
    rows, columns = (optimizer.state[parameter][key].clone() for key in ("row_var", "col_var"))
    journal = Journal()
    kept = torch.arange(0, 32, 3)
    journal.slice(parameter, 1, kept)
    prepare_to_follow(optimizer, journal)()
    assert torch.equal(optimizer.state[parameter]["row_var"], rows)
    assert torch.equal(optimizer.state[parameter]["col_var"], columns[:, kept])


def test_names_of_parameters_leave_with_them(base: PeftModel) -> None:
    model = fresh(base)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(named, lr=1e-2)
    step(model, optimizer, 11)
    lightpeft.cut(model, plan_of(model, WHOLE_BLOCKS), optimizer)
    group = optimizer.param_groups[0]
    expected = {id(p): name for name, p in model.named_parameters()}
    assert len(group["params"]) == len(group["param_names"])
    found = zip(group["params"], group["param_names"], strict=True)
    assert all(
        expected[id(p)].replace("base_layer.", "") == name.replace("base_layer.", "") for p, name in found
    )
