"""Score `mask`, the paper's: gates trained with an L1 term, ranked by |m|, folded at the cut."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.models import (
    LAYERS,
    ROWS,
    assert_same,
    gated,
    load_base,
    make_batch,
    outputs,
    save_base,
    with_lora,
)
from tests.support.oracles import base_gradients, mean_inputs
from tests.support.plans import plan_gates
from torch import Tensor

import lightpeft
from lightpeft import Budget, EstimationConfig, Scores, SurgeryConfig, find_anatomy, make_plan
from lightpeft.estimation import Estimator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(folder: Path) -> PeftModel:
    return with_lora(load_base(folder))


def batches(count: int) -> list[dict[str, Tensor]]:
    return [make_batch("bert", labels=True, seed=60 + i) for i in range(count)]


def train_gates(model: PeftModel, steps: int, rate: float, l1: float = 1e-4, **options: float) -> Scores:
    """Only the gates move."""
    frozen = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    config = EstimationConfig(
        steps=steps, window="second_half", base_score="mask", l1=l1, gate_learning_rate=rate, **options
    )
    return lightpeft.estimate(model, batches(steps), config, optimizer=frozen)


def test_the_first_gate_step_is_adams_on_the_gradient_plus_l1(model: PeftModel) -> None:
    """AdamW's first step is −lr · g/(|g| + ε): only the sign of (gradient + λ sign m) decides."""
    l1 = float(base_gradients(model, batches(1)[0])[1][0].abs().median())
    scores = train_gates(model, 1, 0.1, l1=l1)
    heads, neurons = base_gradients(model, batches(1)[0])
    for i in range(LAYERS):
        gates = scores.gates[ROWS["bert"].at(i, "ffn_out")]
        gradient = neurons[i] + l1
        torch.testing.assert_close(gates, 1 - 0.1 * gradient / (gradient.abs() + 1e-8))
        gates = scores.gates[ROWS["bert"].at(i, "attention_out")].view(4, 8)
        assert torch.equal(gates, gates[:, :1].expand(4, 8))
        torch.testing.assert_close(gates[:, 0], 1 - 0.1 * (heads[i] + l1).sign())
    assert neurons[0].sign().ne((neurons[0] + l1).sign()).any(), "λ should decide some signs"


def test_l1_pushes_every_gate_down_by_its_sign(model: PeftModel) -> None:
    scores = train_gates(model, 3, 0.01, l1=1e3)
    for gates in scores.gates.values():
        torch.testing.assert_close(gates, torch.full_like(gates, 0.97), rtol=1e-4, atol=1e-4)


def test_l1_pulls_a_negative_gate_up(model: PeftModel) -> None:
    estimator = Estimator(model, EstimationConfig(steps=2, base_score="mask", l1=1e3))
    estimator.attach()
    model.train()
    gates = [gate.values for gate in estimator._gates[:2]]
    with torch.no_grad():
        for values in gates:
            values.neg_()
    model(**batches(1)[0]).loss.backward()
    estimator.end_step(0.01)
    estimator.detach()
    for values in gates:
        torch.testing.assert_close(values.detach(), torch.full_like(values, -0.99))


def test_gates_follow_the_runs_learning_rate_unless_set(model: PeftModel) -> None:
    estimator = Estimator(model, EstimationConfig(steps=3, base_score="mask", l1=1e3))
    estimator.attach()
    model.train()
    for rate in (0.1, 0.0, 0.01):
        model(**batches(1)[0]).loss.backward()
        estimator.end_step(rate)
        model.zero_grad()
    estimator.detach()
    values = estimator._gates[0].values.detach()
    torch.testing.assert_close(values, torch.full_like(values, 1 - 0.11), rtol=1e-3, atol=1e-3)


def test_trained_gates_act_on_the_model_while_estimating(model: PeftModel) -> None:
    batch = make_batch("bert")
    estimator = Estimator(model, EstimationConfig(steps=2, base_score="mask"))
    estimator.attach()
    model.train()
    model(**batches(1)[0]).loss.backward()
    estimator.end_step(0.2)
    model.zero_grad()
    found, gates = outputs(model, batch), estimator.scores().gates
    estimator.detach()
    with gated(model.get_base_model(), gates):
        assert_same(found, outputs(model, batch))


def test_scores_are_the_gates_magnitudes(model: PeftModel) -> None:
    scores = train_gates(model, 4, 0.5)
    assert any(bool((gates < 0).any()) for gates in scores.gates.values())
    for i in range(LAYERS):
        neurons = scores.gates[ROWS["bert"].at(i, "ffn_out")]
        heads = scores.gates[ROWS["bert"].at(i, "attention_out")].view(4, 8)[:, 0]
        assert torch.equal(scores.neurons[i], neurons.abs())
        assert torch.equal(scores.heads[i], heads.abs())


def test_a_strongly_negative_gate_is_important() -> None:
    values = torch.tensor([-0.9, 0.1, 0.5, -0.2])
    assert torch.argsort(values.abs(), descending=True).tolist() == [0, 2, 3, 1]


@pytest.mark.parametrize("fold_removed", [True, False])
def test_trained_gates_fold_into_the_cut_model(fold_removed: bool, folder: Path, tmp_path: Path) -> None:
    model, batch = with_lora(load_base(folder)), make_batch("bert")
    scores = train_gates(model, 4, 0.3)
    plan = make_plan(scores, find_anatomy(model), Budget(neurons_scope="global"))
    with gated(model.get_base_model(), plan_gates(plan, scores.gates, ranks=not fold_removed)):
        expected = outputs(model, batch)
    config = SurgeryConfig(fold_removed=fold_removed, compensate=False)
    lightpeft.cut(model, plan, scores=scores, config=config)
    assert_same(outputs(model, batch), expected)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert_same(outputs(loaded, batch), expected)


def test_gates_are_dropped_when_asked(folder: Path) -> None:
    model, batch = with_lora(load_base(folder)), make_batch("bert")
    scores = train_gates(model, 4, 0.3)
    plan = make_plan(scores, find_anatomy(model), Budget())
    with gated(model.get_base_model(), plan_gates(plan, ranks=True)):
        expected = outputs(model, batch)
    config = SurgeryConfig(fold_gates=False, fold_removed=False, compensate=False)
    lightpeft.cut(model, plan, scores=scores, config=config)
    assert_same(outputs(model, batch), expected)


def test_means_are_of_the_gated_inputs(model: PeftModel) -> None:
    """Compensation adds what a cut unit contributed: its input behind the gate, not before it.

    Of the two steps the second counts.
    """
    config = EstimationConfig(steps=2, window="second_half", base_score="mask", gate_learning_rate=0.0)
    estimator = Estimator(model, config)
    with torch.no_grad():
        for gate in estimator._gates[: 2 * LAYERS]:
            gate.values.copy_(torch.rand_like(gate.values))
    estimator.attach()
    model.train()
    for batch in batches(2):
        model(**batch).loss.backward()
        estimator.end_step(0.0)
    scores = estimator.scores()
    estimator.detach()
    with gated(model.get_base_model(), scores.gates):
        expected = mean_inputs(model, batches(2)[1:])
    assert_same(scores.means, expected)
