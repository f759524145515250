"""Every score against the same number from plain autograd, on all architectures."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.models import (
    HEADS,
    LAYERS,
    NAMES,
    ROWS,
    load_base,
    make_batch,
    save_base,
    snapshot,
    with_lora,
)
from tests.support.oracles import (
    base_gradients,
    contribution_ratios,
    fluctuations,
    gate_gradients,
    mean_inputs,
    weight_gradients,
)
from tests.support.plans import lora_names
from torch import Tensor

import lightpeft
from lightpeft import EstimationConfig, Scores, find_anatomy

ALPHA, RANK = 6.0, 4


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str, tmp_path: Path) -> PeftModel:
    return with_lora(load_base(save_base(name, tmp_path)), alpha=ALPHA, rank=RANK)


@pytest.fixture
def batches(name: str) -> list[dict[str, Tensor]]:
    """Four batches; scores are over the last two."""
    return [make_batch(name, labels=True, seed=20 + i, rows=3 + i % 2) for i in range(4)]


def estimated(model: PeftModel, batches: list[dict[str, Tensor]], **options: object) -> Scores:
    """Scores of a run in which no weight moves."""
    trained = [p for p in model.parameters() if p.requires_grad]
    config = EstimationConfig(steps=len(batches), window="second_half", **options)
    return lightpeft.estimate(model, batches, config, optimizer=torch.optim.SGD(trained, lr=0.0))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_taylor_is_the_mean_gate_gradient(model: PeftModel, batches: list[dict[str, Tensor]]) -> None:
    scores = estimated(model, batches, base_score="taylor")
    late = [base_gradients(model, batch) for batch in batches[2:]]
    for i in range(LAYERS):
        close(scores.heads[i], sum(heads[i] for heads, _ in late).abs() / 2)
        close(scores.neurons[i], sum(neurons[i] for _, neurons in late).abs() / 2)
        assert scores.heads[i].min() > 0


def test_fisher_is_the_mean_squared_gate_gradient(model: PeftModel, batches: list[dict[str, Tensor]]) -> None:
    scores = estimated(model, batches, base_score="fisher")
    late = [base_gradients(model, batch) for batch in batches[2:]]
    for i in range(LAYERS):
        close(scores.heads[i], sum(heads[i].square() for heads, _ in late) / 2)
        close(scores.neurons[i], sum(neurons[i].square() for _, neurons in late) / 2)


def test_the_gate_gradient_is_the_slope_of_the_loss(
    model: PeftModel, name: str, batches: list[dict[str, Tensor]]
) -> None:
    """The oracle itself, against finite differences: one head and one neuron."""
    base, batch = model.double().get_base_model(), batches[0]
    for place, gradient in gate_gradients(model, batch).items():
        if not place.startswith(ROWS[name].layer.format(1)) or "lora" in place:
            continue
        unit, losses = 1, []
        for value in (1 + 1e-4, 1 - 1e-4):
            factors = torch.ones(len(gradient), dtype=torch.float64)
            factors[unit] = value
            hook = base.get_submodule(place).register_forward_pre_hook(
                lambda m, args, f=factors: args[0] * f.repeat_interleave(args[0].shape[-1] // len(f))
            )
            losses.append(model(**batch).loss.item())
            hook.remove()
        assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float(gradient[unit]), rel=1e-3)


def test_rank_taylor_is_the_same_sum_over_a_and_over_b(
    model: PeftModel, batches: list[dict[str, Tensor]]
) -> None:
    scores = estimated(model, batches, rank_score="taylor")
    late = [weight_gradients(model, batch) for batch in batches[2:]]
    for name in lora_names(model):
        over_a = sum((a * da).sum(1) for a, da, _, _ in (found[name] for found in late)) / 2
        over_b = sum((b * db).sum(0) for _, _, b, db in (found[name] for found in late)) / 2
        close(over_a, over_b)
        close(scores.ranks[name], over_a.abs())
        assert scores.ranks[name].max() > 0


def test_the_papers_rank_score_punishes_wide_modules(
    model: PeftModel, batches: list[dict[str, Tensor]]
) -> None:
    scores = estimated(model, batches, rank_score="paper")
    late = [weight_gradients(model, batch) for batch in batches[2:]]
    for name in lora_names(model):
        parts = [found[name] for found in late]
        over_a = sum((a * da).mean(1) for a, da, _, _ in parts) / 2
        over_b = sum((b * db).mean(0) for _, _, b, db in parts) / 2
        close(scores.ranks[name], over_a.abs() + over_b.abs())


def test_rank_fisher_is_the_mean_squared_rank_gradient(
    model: PeftModel, batches: list[dict[str, Tensor]]
) -> None:
    scores = estimated(model, batches, rank_score="fisher")
    late = [weight_gradients(model, batch) for batch in batches[2:]]
    for name in lora_names(model):
        steps = [(found[name][0] * found[name][1]).sum(1) for found in late]
        close(scores.ranks[name], sum(step.square() for step in steps) / 2)


@pytest.mark.parametrize("method", ["taylor", "fisher"])
def test_a_module_gate_is_the_sum_of_its_rank_gates(
    method: str, model: PeftModel, batches: list[dict[str, Tensor]]
) -> None:
    scores = estimated(model, batches, module_score=method)
    late = [weight_gradients(model, batch) for batch in batches[2:]]
    for name in lora_names(model):
        steps = [(found[name][0] * found[name][1]).sum() for found in late]
        mean = sum(s.square() for s in steps) / 2 if method == "fisher" else abs(sum(steps)) / 2
        assert scores.modules[name] == pytest.approx(float(mean), rel=1e-3, abs=1e-7)


def test_activation_ratio_is_the_mean_over_real_tokens_of_the_second_half(
    model: PeftModel, batches: list[dict[str, Tensor]]
) -> None:
    scores = estimated(model, batches, module_score="activation")
    expected = contribution_ratios(model, batches[2:], ALPHA / RANK)
    assert scores.modules == pytest.approx(expected, rel=1e-5)
    early = contribution_ratios(model, batches[:2], ALPHA / RANK)
    assert scores.modules != pytest.approx(early, rel=1e-5)


def test_means_are_those_of_real_tokens_of_the_second_half(
    model: PeftModel, batches: list[dict[str, Tensor]]
) -> None:
    scores, expected = estimated(model, batches), mean_inputs(model, batches[2:])
    assert scores.means.keys() == expected.keys()
    for place, mean in expected.items():
        torch.testing.assert_close(scores.means[place], mean, rtol=1e-5, atol=1e-6)


def test_fluctuation_is_what_the_output_loses_without_the_unit(
    model: PeftModel, batches: list[dict[str, Tensor]]
) -> None:
    scores, modules = estimated(model, batches, base_score="fluctuation"), find_anatomy(model).modules
    for i in range(LAYERS):
        lost = fluctuations(model, i, modules[i], batches[2:])
        heads = lost["attention_out"].view(HEADS, -1).sum(1)
        torch.testing.assert_close(scores.heads[i], heads.detach(), rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(scores.neurons[i], lost["ffn_out"].detach(), rtol=1e-3, atol=1e-9)
        assert scores.heads[i].min() > 0


def test_magnitude_is_the_norm_of_a_units_weights(
    model: PeftModel, name: str, batches: list[dict[str, Tensor]]
) -> None:
    scores, row, base = estimated(model, batches, base_score="magnitude"), ROWS[name], model.get_base_model()
    for i in range(LAYERS):
        weight = {
            part: base.get_submodule(row.at(i, part)).get_base_layer().weight
            for part in ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
        }
        head = torch.cat(
            [weight[part][8:16].flatten() for part in ("query", "key", "value")]
            + [weight["attention_out"][:, 8:16].flatten()]
        )
        neuron = torch.cat([weight["ffn_in"][5], weight["ffn_out"][:, 5]])
        close(scores.heads[i][1], head.norm().detach())
        close(scores.neurons[i][5], neuron.norm().detach())


def test_random_scores_follow_their_seed(model: PeftModel, batches: list[dict[str, Tensor]]) -> None:
    one, same, other = (estimated(model, batches[:1], base_score="random", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.heads, same.heads, strict=True))
    assert not torch.equal(one.neurons[0], other.neurons[0])


@pytest.mark.parametrize(("steps", "first"), [(1, 0), (2, 1), (3, 1), (5, 2)])
def test_scores_are_over_the_second_half_of_the_steps(steps: int, first: int, tmp_path: Path) -> None:
    model = with_lora(load_base(save_base("bert", tmp_path)))
    batches = [make_batch("bert", labels=True, seed=30 + i) for i in range(steps)]
    scores = estimated(model, batches, base_score="taylor")
    late = [base_gradients(model, batch)[1][1] for batch in batches[first:]]
    close(scores.neurons[1], sum(late).abs() / len(late))
    assert scores.steps == steps


def test_estimation_trains_the_adapter_and_leaves_the_base(
    model: PeftModel, batches: list[dict[str, Tensor]]
) -> None:
    before = snapshot(model)
    lightpeft.estimate(model, batches, EstimationConfig(steps=4), learning_rate=1e-2)
    after = model.state_dict()
    assert list(after) == list(before)
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == trained


def test_these_are_the_steps_of_plain_training(
    name: str, batches: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    """Probing gates change nothing: the weights after estimation are those of a run without it."""
    folder = save_base(name, tmp_path)
    plain, light = with_lora(load_base(folder)), with_lora(load_base(folder))
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2)
    plain.train()
    for batch in batches:
        plain(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    lightpeft.estimate(light, batches, EstimationConfig(steps=4), learning_rate=1e-2)
    for key, value in plain.state_dict().items():
        assert torch.equal(light.state_dict()[key], value), key
