"""Scores are those of the unscaled gradient of the whole step, whatever else the run does."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.models import (
    assert_identical,
    checkpoint_activations,
    hook_count,
    load_base,
    make_batch,
    outputs,
    save_base,
    snapshot,
    widened,
    with_lora,
)
from tests.support.oracles import base_gradients
from torch import Tensor

import lightpeft
from lightpeft import ConfigError, EstimationConfig, EstimationError, Scores, find_anatomy
from lightpeft.estimation import Estimator
from lightpeft.training.callback import loss_scale_of

Batch = dict[str, Tensor]
STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(folder: Path) -> PeftModel:
    return with_lora(load_base(folder))


def training_batches(seed: int = 40) -> list[Batch]:
    return [make_batch("bert", labels=True, seed=seed + i) for i in range(STEPS)]


def run(
    model: PeftModel,
    batches: Iterable[Batch],
    step: Callable[[PeftModel, Batch], float] | None = None,
    between: Callable[[PeftModel], object] = lambda model: None,
    **options: Any,
) -> Scores:
    """Drive the Estimator by hand; `step` does the backward passes and returns the loss scale."""
    options = {"base_score": "taylor", "window": "second_half"} | options
    estimator = Estimator(model, EstimationConfig(steps=STEPS, **options))
    estimator.attach()
    model.train()
    for batch in batches:
        scale = step(model, batch) if step else whole_step(model, batch)
        estimator.end_step(1e-3, scale)
        model.zero_grad()
        between(model)
        model.train()
    scores = estimator.scores()
    estimator.detach()
    return scores


def whole_step(model: PeftModel, batch: Batch) -> float:
    model(**batch).loss.backward()
    return 1.0


def assert_same_scores(found: Scores, expected: Scores, rtol: float = 1e-4) -> None:
    pairs = [*zip(found.heads, expected.heads, strict=True)]
    pairs += zip(found.neurons, expected.neurons, strict=True)
    pairs += [(found.ranks[name], expected.ranks[name]) for name in expected.ranks]
    pairs += [(found.means[name], expected.means[name]) for name in expected.means]
    for mine, other in pairs:
        scale = float(other.abs().max())
        torch.testing.assert_close(mine, other, rtol=rtol, atol=rtol * scale)
    assert found.modules == pytest.approx(expected.modules, rel=rtol)


@pytest.fixture
def expected(model: PeftModel) -> Scores:
    return run(model, training_batches())


def test_more_padding_changes_nothing(model: PeftModel, expected: Scores) -> None:
    wide = [widened("bert", batch, 1 + i) for i, batch in enumerate(training_batches())]
    assert_same_scores(run(model, wide), expected)


def test_padding_rows_of_garbage_change_nothing(model: PeftModel, expected: Scores) -> None:
    """What stands in padded places must not matter."""
    batches = training_batches()
    for batch in batches:
        batch["input_ids"][batch["attention_mask"] == 0] = 77
    assert_same_scores(run(model, batches), expected)


def test_no_mask_means_that_every_token_counts(model: PeftModel) -> None:
    full = [make_batch("bert", labels=True, padded=False, seed=50 + i) for i in range(STEPS)]
    masked = [batch | {"attention_mask": torch.ones_like(batch["input_ids"])} for batch in full]
    assert_same_scores(run(model, full), run(model, masked))


def test_accumulated_micro_batches_score_as_one_step(model: PeftModel, expected: Scores) -> None:
    def accumulate(model: PeftModel, batch: Batch) -> float:
        for part in range(4):
            one = {key: value[part : part + 1] for key, value in batch.items()}
            (model(**one).loss / 4).backward()
        return 1.0

    assert_same_scores(run(model, training_batches(), accumulate), expected)
    fisher = run(model, training_batches(), base_score="fisher", rank_score="fisher")
    parts = run(model, training_batches(), accumulate, base_score="fisher", rank_score="fisher")
    assert_same_scores(parts, fisher)


def test_clipping_changes_nothing(model: PeftModel, expected: Scores) -> None:
    def clipped(model: PeftModel, batch: Batch) -> float:
        model(**batch).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-6)
        assert norm > 1e-3
        return 1.0

    assert_same_scores(run(model, training_batches(), clipped), expected)


@pytest.mark.parametrize("base_score", ["taylor", "fisher", "mask"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_activation_checkpointing_changes_nothing(reentrant: bool, base_score: str, folder: Path) -> None:
    plain, checkpointed = with_lora(load_base(folder)), with_lora(load_base(folder))
    checkpoint_activations(checkpointed.get_base_model(), reentrant=reentrant)
    found = run(checkpointed, training_batches(), base_score=base_score)
    wanted = run(plain, training_batches(), base_score=base_score)
    assert_same_scores(found, wanted)
    assert {k: v.tolist() for k, v in found.gates.items()} == {
        k: pytest.approx(v.tolist(), rel=1e-5) for k, v in wanted.gates.items()
    }


def test_bfloat16_autocast_is_close(model: PeftModel, expected: Scores) -> None:
    def autocast(model: PeftModel, batch: Batch) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        return 1.0

    found = run(model, training_batches(), autocast)
    for mine, other in zip(found.neurons, expected.neurons, strict=True):
        assert torch.corrcoef(torch.stack([mine, other]))[0, 1] > 0.99
        assert mine.dtype == torch.float32
    assert found.modules == pytest.approx(expected.modules, rel=0.05)


def scaled(scale: float) -> Callable[[PeftModel, Batch], float]:
    def step(model: PeftModel, batch: Batch) -> float:
        (model(**batch).loss * scale).backward()
        return scale

    return step


@pytest.mark.parametrize("base_score", ["taylor", "fisher", "mask"])
def test_the_loss_scale_is_taken_out(base_score: str, model: PeftModel) -> None:
    plain = run(model, training_batches(), base_score=base_score, rank_score="fisher")
    other = run(model, training_batches(), scaled(1024.0), base_score=base_score, rank_score="fisher")
    assert_same_scores(other, plain)


def test_the_loss_scale_may_be_a_tensor(model: PeftModel, expected: Scores) -> None:
    def step(model: PeftModel, batch: Batch) -> Any:
        (model(**batch).loss * 512.0).backward()
        return torch.tensor([512.0])

    assert_same_scores(run(model, training_batches(), step), expected)


def test_the_scale_is_read_from_accelerates_scaler(model: PeftModel, expected: Scores) -> None:
    """As the Trainer does it: the scaler unscales and clips the parameters, never the gates."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    wrapped = SimpleNamespace(scaler=scaler)

    def step(model: PeftModel, batch: Batch) -> Any:
        scaler.scale(model(**batch).loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        scale = loss_scale_of(wrapped)
        scaler.step(optimizer)
        scaler.update()
        return scale

    assert_same_scores(run(model, training_batches(), step), expected)
    assert loss_scale_of(optimizer) == 1.0


def overflowing(bad: set[int]) -> Callable[[PeftModel, Batch], float]:
    """Steps whose backward overflows, as under a loss scale that is too large."""
    count = iter(range(100))

    def step(model: PeftModel, batch: Batch) -> float:
        factor = float("inf") if next(count) in bad else 1.0
        (model(**batch).loss * factor).backward()
        return 1.0

    return step


def test_a_step_that_overflowed_is_left_out(model: PeftModel) -> None:
    batches = training_batches()
    found = run(model, batches, overflowing({3}))
    gradients = base_gradients(model, batches[2])
    for mine, other in zip(found.neurons, gradients[1], strict=True):
        torch.testing.assert_close(mine, other.abs(), rtol=1e-4, atol=1e-6)


def test_an_early_overflow_does_not_poison_trained_gates(model: PeftModel) -> None:
    scores = run(model, training_batches(), overflowing({0}), base_score="mask")
    assert all(torch.isfinite(gates).all() for gates in scores.gates.values())


def test_trained_gates_stay_where_a_step_overflows(model: PeftModel) -> None:
    config = EstimationConfig(steps=4, base_score="mask")
    estimator = Estimator(model, config)
    estimator.attach()
    model.train()
    step = overflowing({1})
    seen = []
    for batch in training_batches()[:2]:
        step(model, batch)
        estimator.end_step(1e-2)
        seen.append(estimator.scores().gates)
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    assert not all((gates == 1).all() for gates in seen[0].values())


def test_only_overflows_are_an_error(model: PeftModel) -> None:
    with pytest.raises(EstimationError, match="none of 2 estimation steps had finite gradients"):
        run(model, training_batches(), overflowing(set(range(4))))


def test_no_step_is_an_error(model: PeftModel) -> None:
    with pytest.raises(EstimationError, match="no training step"):
        Estimator(model, EstimationConfig()).scores()


@pytest.mark.parametrize("base_score", ["fisher", "mask"])
def test_an_evaluation_in_between_changes_nothing(base_score: str, folder: Path) -> None:
    quiet, evaluated = with_lora(load_base(folder)), with_lora(load_base(folder))
    other = make_batch("bert", seed=99, rows=2, tokens=6)
    found = run(evaluated, training_batches(), between=lambda m: outputs(m, other), base_score=base_score)
    assert_same_scores(found, run(quiet, training_batches(), base_score=base_score), rtol=1e-6)


@pytest.mark.parametrize("base_score", ["fisher", "mask"])
def test_gates_at_one_change_no_output_and_no_state_dict_key(base_score: str, model: PeftModel) -> None:
    batch = make_batch("bert")
    before, tensors, parameters = outputs(model, batch), snapshot(model), len(list(model.parameters()))
    estimator = Estimator(model, EstimationConfig(base_score=base_score))
    estimator.attach()
    during = outputs(model, batch)
    assert_identical(model.state_dict(), tensors)
    assert len(list(model.parameters())) == parameters
    estimator.detach()
    for key, value in before.items():
        assert torch.equal(during[key], value)


@pytest.mark.parametrize("times", [1, 3])
def test_no_hook_is_left_behind(times: int, model: PeftModel) -> None:
    before = hook_count(model)
    estimator = Estimator(model, EstimationConfig())
    for _ in range(times):
        estimator.attach()
        assert hook_count(model) > before
        estimator.detach()
    assert hook_count(model) == before


def test_attaching_twice_does_not_count_twice(model: PeftModel, expected: Scores) -> None:
    before = hook_count(model)
    estimator = Estimator(model, EstimationConfig(steps=STEPS, base_score="taylor", window="second_half"))
    estimator.attach()
    estimator.attach()
    model.train()
    for batch in training_batches():
        whole_step(model, batch)
        estimator.end_step(1e-3)
        model.zero_grad()
    scores = estimator.scores()
    estimator.detach()
    assert_same_scores(scores, expected)
    assert hook_count(model) == before


def test_a_failed_estimation_leaves_no_hook_and_the_mode(model: PeftModel) -> None:
    before = hook_count(model)
    model.eval()

    def breaking() -> Iterable[Batch]:
        yield training_batches()[0]
        raise RuntimeError("the data ended badly")

    with pytest.raises(RuntimeError, match="ended badly"):
        lightpeft.estimate(model, breaking(), EstimationConfig(steps=3))
    assert hook_count(model) == before
    assert not model.training


def test_too_few_batches_are_an_error_that_counts_them(model: PeftModel) -> None:
    with pytest.raises(ConfigError, match="steps is 9, but there were only 4 batches"):
        lightpeft.estimate(model, training_batches(), EstimationConfig(steps=9))


def test_a_model_without_anything_to_train_is_an_error(model: PeftModel) -> None:
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        lightpeft.estimate(model, training_batches(), EstimationConfig(steps=2))


def test_a_four_dimensional_mask_is_an_error_that_says_so(model: PeftModel) -> None:
    batch = make_batch("bert", labels=True)
    batch["attention_mask"] = torch.ones(4, 1, 10, 10)
    with pytest.raises(EstimationError, match=r"shape \(4, 1, 10, 10\)"):
        lightpeft.estimate(model, [batch], EstimationConfig(steps=1))


def test_estimation_goes_on_from_its_saved_state(folder: Path) -> None:
    """Two steps, state out, a fresh estimator, two more steps: the scores of four steps."""
    for base_score in ("fisher", "mask"):
        config = EstimationConfig(
            steps=STEPS, base_score=base_score, gate_learning_rate=0.05, window="second_half"
        )
        batches = training_batches()
        whole = run(with_lora(load_base(folder)), batches, base_score=base_score, gate_learning_rate=0.05)
        first, second = with_lora(load_base(folder)), with_lora(load_base(folder))
        state: Any = None
        for model, part in ((first, batches[:2]), (second, batches[2:])):
            estimator = Estimator(model, config)
            if state is not None:
                tensors, header = state
                estimator.restore({k: v.detach().clone() for k, v in tensors.items()}, header)
            estimator.attach()
            model.train()
            for batch in part:
                whole_step(model, batch)
                estimator.end_step(1e-3)
                model.zero_grad()
            state = estimator.state()
            estimator.detach()
        assert_same_scores(estimator.scores(), whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("run", "steps"),
    [
        (3, 1),
        (10, 3),
        (60, 10),
        (87, 10),
        (88, 11),
        (320, 40),
        (1000, 40),
        (2000, 60),
        (5000, 150),
        (99999, 200),
    ],
)
def test_auto_is_a_small_share_of_the_run(run: int, steps: int) -> None:
    config = EstimationConfig().in_run(run)
    assert config.steps == config.planned_steps == steps
    assert EstimationConfig(steps=7).in_run(run).steps == 7


@pytest.mark.parametrize(
    ("count", "sized", "steps"), [(6, True, 6), (6, False, 6), (50, False, 40), (1400, True, 42)]
)
def test_auto_outside_a_run_goes_by_the_batches(count: int, sized: bool, steps: int, folder: Path) -> None:
    batch = make_batch("bert", labels=True, rows=1, tokens=3)
    batches = [batch] * count if sized else (batch for _ in range(count))
    assert lightpeft.estimate(with_lora(load_base(folder)), batches).steps == steps


def test_scores_fit_the_anatomy_they_came_from(model: PeftModel, expected: Scores) -> None:
    anatomy = find_anatomy(model)
    assert [len(h) for h in expected.heads] == [layer.heads for layer in anatomy.layers]
    assert [len(n) for n in expected.neurons] == [layer.neurons for layer in anatomy.layers]
    assert lightpeft.make_plan(expected, anatomy, lightpeft.Budget()).estimation_steps == STEPS
