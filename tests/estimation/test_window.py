"""Scores are of exactly the second half of the steps, however many there are, and say how many those were."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.models import load_base, make_batch, save_base, tiny_peft, with_lora
from tests.support.oracles import base_gradients
from tests.support.runs import trainer
from torch import Tensor

import lightpeft
from lightpeft import Budget, CheckpointError, EstimationConfig, LightConfig, Scores, find_anatomy, make_plan
from lightpeft.estimation import Estimator
from lightpeft.estimation.statistics import WindowSums
from lightpeft.evidence import LEAST_AGREEMENT, Agreement, Evidence

CPU = torch.device("cpu")


def started(config: EstimationConfig) -> WindowSums:
    return WindowSums({"sums": 3}, config.window_start, CPU)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 21])
@pytest.mark.parametrize("window", ["all", "second_half"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_sums_are_of_the_steps_that_count(steps: int, window: Any, interrupted: bool) -> None:
    """Whole numbers, so that sums are exact; `interrupted` goes through a checkpoint after every step."""
    config = EstimationConfig(steps=steps, window=window)
    sums = started(config)
    for number in range(1, steps + 1):
        sums.current("sums").add_(torch.tensor([number, 1, number**2]))
        sums.end_step()
        if interrupted:
            tensors, header = sums.state()
            tensors = {name: values.clone() for name, values in tensors.items()}
            sums = started(config)
            sums.restore(tensors, **header)
    found, late = sums.window(), torch.arange(1, steps + 1)[steps // 2 if window == "second_half" else 0 :]
    assert sums.counted == len(late)
    halves = [late[late % 2 == 1], late[late % 2 == 0]]  # the first step is an even one
    for sums_of_half, half in zip(found["sums"], halves, strict=True):
        assert sums_of_half.tolist() == [half.sum(), len(half), half.square().sum()]


def test_before_the_first_step_that_counts_all_do() -> None:
    sums = started(EstimationConfig(steps=8, window="second_half"))
    for _ in range(3):
        sums.current("sums").add_(1)
        sums.end_step()
    assert sums.counted == 3
    assert sums.window()["sums"].tolist() == [[2, 2, 2], [1, 1, 1]]


@pytest.fixture
def model(tmp_path: Path) -> PeftModel:
    return tiny_peft("bert", tmp_path)


def batches(count: int) -> list[dict[str, Tensor]]:
    return [make_batch("bert", labels=True, seed=30 + i) for i in range(count)]


def estimated(model: PeftModel, count: int, **options: Any) -> Scores:
    """Scores of a run in which no weight moves."""
    trained = [p for p in model.parameters() if p.requires_grad]
    config = EstimationConfig(steps=count, **options)
    optimizer = torch.optim.SGD(trained, lr=0.0)
    return lightpeft.estimate(model, batches(count), config, optimizer=optimizer)


@pytest.mark.parametrize("count", [1, 2, 7, 10])
@pytest.mark.parametrize("window", ["all", "second_half"])
def test_scores_are_of_the_steps_that_count_and_so_are_their_halves(
    window: str, count: int, model: PeftModel
) -> None:
    scores = estimated(model, count, window=window, base_score="fisher")
    squares = [base_gradients(model, batch)[1][1].square() for batch in batches(count)]
    start = count // 2 if window == "second_half" else 0
    late = squares[start:]
    torch.testing.assert_close(scores.neurons[1], sum(late) / len(late), rtol=1e-4, atol=1e-7)
    assert (scores.steps, scores.scored_steps) == (count, len(late))
    if len(late) == 1:
        assert scores.halves == ()
        return
    halves = [squares[first:][(first + half) % 2 :: 2] for half in (0, 1) for first in [start]]
    assert [half.scored_steps for half in scores.halves] == [len(half) for half in halves]
    for found, half in zip(scores.halves, halves, strict=True):
        torch.testing.assert_close(found.neurons[1], sum(half) / len(half), rtol=1e-4, atol=1e-7)


def test_a_half_without_a_finite_step_is_no_half(model: PeftModel) -> None:
    estimator = Estimator(model, EstimationConfig(steps=4, window="second_half"))
    estimator.attach()
    model.train()
    for number, batch in enumerate(batches(4)):
        (model(**batch).loss * (float("inf") if number == 3 else 1.0)).backward()
        estimator.end_step(1e-3)
        model.zero_grad()
    estimator.detach()
    assert estimator.scores().halves == ()
    assert estimator.scores().scored_steps == 1


def test_what_does_not_come_from_the_steps_has_no_agreement(model: PeftModel) -> None:
    kinds = {}
    for base_score in ("fisher", "fluctuation", "magnitude", "random", "mask"):
        scores = estimated(model, 4, base_score=base_score)
        evidence = make_plan(scores, find_anatomy(model), Budget()).evidence
        assert evidence is not None
        kinds[base_score] = [agreement.kind for agreement in evidence.agreements]
    for measured in ("fisher", "fluctuation"):
        assert kinds.pop(measured) == ["heads", "neurons", "PEFT modules", "ranks"]
    assert set(map(tuple, kinds.values())) == {("PEFT modules", "ranks")}


def test_halves_that_would_cut_the_same_agree_and_others_are_counted(model: PeftModel) -> None:
    scores, anatomy = estimated(model, 4), find_anatomy(model)
    even = scores.halves[0]
    same = lightpeft.Scores(**vars(scores) | {"halves": (even, even)})
    evidence = make_plan(same, anatomy, Budget()).evidence
    assert evidence is not None
    assert {agreement.share for agreement in evidence.agreements} == {1.0}
    assert evidence.agreements[0] == Agreement("heads", 1.0, pytest.approx(1 / 4))  # 1 of 4 in each layer
    assert evidence.weakness() is None
    turned = lightpeft.Scores(**vars(even) | {"heads": tuple(-values for values in even.heads)})
    other = lightpeft.Scores(**vars(scores) | {"halves": (even, turned)})
    evidence = make_plan(other, anatomy, Budget()).evidence
    assert evidence is not None
    assert evidence.agreements[0] == Agreement("heads", 0.0, pytest.approx(1 / 4))
    assert "agree on only 0% of the heads that go (by chance 25%)" in str(evidence.weakness())


def test_kappa_is_zero_at_chance_and_one_at_agreement() -> None:
    assert Agreement("heads", 0.3, 0.3).above_chance == 0
    assert Agreement("heads", 1.0, 0.3).above_chance == 1
    assert Agreement("heads", 1.0, 1.0).above_chance == 1
    assert Agreement("heads", 0.65, 0.3).above_chance == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("steps", "above", "weak"),
    [(1, None, "rest on a single step"), (9, -0.01, "agree on only"), (9, 0.01, None), (9, None, None)],
)
def test_a_plan_warns_below_the_bound(steps: int, above: float | None, weak: str | None) -> None:
    agreed = () if above is None else (Agreement("heads", LEAST_AGREEMENT + above, 0.0),)
    found = Evidence(steps, agreed).weakness()
    assert found is None if weak is None else weak in str(found)


def test_a_run_says_what_its_plan_rests_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = save_base("bert", tmp_path / "base")
    with caplog.at_level(logging.INFO, "lightpeft"):
        run = trainer(base, tmp_path / "run", LightConfig(), max_steps=9)
        run.train()
    evidence = run.light.plan.evidence
    assert evidence.scored_steps == run.light.scores.scored_steps == 3
    assert "the plan rests on scores of 3 steps, whose even and odd ones agree on" in caplog.text
    assert evidence.describe() in run.light.plan.describe()
    light = lightpeft.save(run.model, tmp_path / "light")
    assert lightpeft.surgery.record_of(lightpeft.load(light)).plan.evidence == evidence
    with caplog.at_level(logging.WARNING, "lightpeft"):
        trainer(base, tmp_path / "short", LightConfig(), max_steps=3).train()
    assert "weak evidence: the scores rest on a single step" in caplog.text


def test_a_state_of_other_statistics_is_refused(model: PeftModel) -> None:
    tensors, header = Estimator(model, EstimationConfig(steps=4)).state()
    other = Estimator(model, EstimationConfig(steps=4, base_score="taylor"))
    with pytest.raises(CheckpointError, match="does not fit this model and configuration"):
        other.restore(tensors, header)
    with pytest.raises(CheckpointError, match="does not fit"):
        Estimator(with_lora(load_base_of(model), rank=2), EstimationConfig(steps=4)).restore(tensors, header)


def load_base_of(model: PeftModel) -> Any:
    return load_base(Path(model.get_base_model().config.name_or_path))
