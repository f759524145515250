"""One run: estimate, cut, go on; with LightTrainer and with the callback in anybody's Trainer."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import (
    assert_identical,
    checkpoint_activations,
    hook_count,
    make_batch,
    outputs,
    save_base,
)
from tests.support.runs import (
    AUTO,
    CONFIGS,
    DEFAULT,
    ESTIMATION,
    FASTER,
    PAPER,
    STEPS,
    fresh_model,
    trainer,
    weights,
)
from transformers import Trainer, TrainerCallback

import lightpeft
from lightpeft import Budget, EstimationConfig, LightCallback, LightConfig, Plan, find_anatomy
from lightpeft.surgery import record_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), dropout=0.1)


class Watch(TrainerCallback):
    """Notes the learning rate that each step used, and the size of the model after it."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.sizes: list[int] = []
        self.states: list[int] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])
        self.states.append(len(kwargs["optimizer"].state))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sizes.append(sum(p.numel() for p in kwargs["model"].parameters()))


def linear_with_warmup(steps: int, warmup: int = 2, rate: float = 1e-2) -> list[float]:
    return [
        rate * (step / warmup if step < warmup else (steps - step) / (steps - warmup))
        for step in range(steps)
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_trainer_and_callback_are_the_same_run(name: str, base: Path, tmp_path: Path) -> None:
    config = CONFIGS[name]
    own = trainer(base, tmp_path / "own", config)
    own.train()
    callback = LightCallback(config)
    plain = trainer(base, tmp_path / "plain", kind=Trainer, callbacks=[callback])
    plain.train()
    assert isinstance(own.light.plan, Plan)
    assert callback.plan == own.light.plan
    assert_identical(weights(plain.model), weights(own.model))


def test_the_cut_comes_after_estimation_and_training_goes_on(base: Path, tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(base, tmp_path, callbacks=[watch])
    before = hook_count(run.model)
    run.train()
    sizes = watch.sizes
    assert len(sizes) == STEPS
    assert len(set(sizes[: ESTIMATION - 1])) == 1
    assert len(set(sizes[ESTIMATION:])) == 1
    assert sizes[-1] < sizes[0]
    assert run.light.report.encoder_after == find_anatomy(run.model).parameters
    assert run.light.plan.estimation_steps == run.light.scores.steps == ESTIMATION
    assert hook_count(run.model) == before


def test_auto_cuts_after_a_third_of_a_short_run(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, AUTO)
    run.train()
    assert run.light.plan.estimation_steps == 3


def test_the_schedule_runs_through_by_default(base: Path, tmp_path: Path) -> None:
    watch = Watch()
    trainer(base, tmp_path, callbacks=[watch]).train()
    assert watch.rates == pytest.approx(linear_with_warmup(STEPS))


def test_the_paper_starts_schedule_and_optimizer_anew(base: Path, tmp_path: Path) -> None:
    watch = Watch()
    trainer(base, tmp_path, PAPER, callbacks=[watch]).train()
    again = linear_with_warmup(STEPS - ESTIMATION)
    assert watch.rates == pytest.approx(linear_with_warmup(STEPS)[:ESTIMATION] + again)
    assert watch.states[ESTIMATION] == 0


def test_the_rate_after_the_cut_can_be_multiplied(base: Path, tmp_path: Path) -> None:
    watch = Watch()
    trainer(base, tmp_path, FASTER, callbacks=[watch]).train()
    plain = linear_with_warmup(STEPS)
    assert watch.rates == pytest.approx(plain[:ESTIMATION] + [2 * rate for rate in plain[ESTIMATION:]])


@pytest.mark.parametrize("kind", ["cosine", "constant_with_warmup"])
def test_other_schedules_start_anew_too(kind: str, base: Path, tmp_path: Path) -> None:
    watch = Watch()
    trainer(base, tmp_path, PAPER, callbacks=[watch], lr_scheduler_type=kind).train()
    after = watch.rates[ESTIMATION:]
    assert after[0] == 0
    assert max(after) == pytest.approx(1e-2)


def test_a_schedule_that_cannot_start_anew_is_refused(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, PAPER, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps")
    with pytest.raises(lightpeft.ConfigError, match=r"LambdaLR.*ReduceLROnPlateau"):
        run.train()


def test_the_run_equals_its_parts_called_by_hand(base: Path, tmp_path: Path) -> None:
    """The plan of the run is make_plan of its scores; nothing else goes in."""
    run = trainer(base, tmp_path)
    run.train()
    uncut = find_anatomy(fresh_model(base))
    assert lightpeft.make_plan(run.light.scores, uncut, DEFAULT.budget) == run.light.plan
    assert record_of(run.model).plan == run.light.plan


def test_a_trained_run_is_saved_and_loaded(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path / "run", PAPER)
    run.train()
    loaded = lightpeft.load(lightpeft.save(run.model, tmp_path / "light"))
    assert_identical(weights(loaded), weights(run.model))
    batch = make_batch("bert")
    assert torch.equal(outputs(loaded, batch)["logits"], outputs(run.model, batch)["logits"])


@pytest.mark.parametrize("after_cut", [False, True])
def test_a_checkpoint_of_a_run_after_the_cut_is_a_light_checkpoint(
    after_cut: bool, base: Path, tmp_path: Path
) -> None:
    run = trainer(base, tmp_path, save_strategy="steps", save_steps=2)
    run.train()
    folder = tmp_path / f"checkpoint-{STEPS if after_cut else 2}"
    if after_cut:
        assert_identical(weights(lightpeft.load(folder)), weights(run.model))
    else:
        with pytest.raises(lightpeft.CheckpointError, match=r"pruning\.json is missing"):
            lightpeft.load(folder)


@pytest.mark.parametrize("divided", [True, False], ids=["mean", "sum"])
def test_gradient_accumulation_scores_as_one_batch(divided: bool, tmp_path: Path) -> None:
    """lr 0 and no dropout, so that both runs see the same weights.

    For classifiers transformers 5.23 forgets to divide the loss by the number of micro-batches (`sum`): then
    all scores grow alike, and the plan is the same.
    """
    base = save_base("bert", tmp_path / "base")
    found = []
    for size, steps in ((8, 1), (2, 4)):
        run = trainer(
            base,
            tmp_path / str(size),
            LightConfig(estimation=EstimationConfig(steps=4, base_score="fisher")),
            learning_rate=0.0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_grad_norm=1e-9,
        )
        if divided:
            run.model_accepts_loss_kwargs = False
        run.train()
        found.append(run.light)
    one, many = found
    factor = 1 if divided else 4
    for kind in ("heads", "neurons"):
        for a, b in zip(getattr(one.scores, kind), getattr(many.scores, kind), strict=True):
            torch.testing.assert_close(b, a * factor**2, rtol=1e-4, atol=1e-4 * float(b.max()))
    assert many.scores.modules == pytest.approx(one.scores.modules, rel=1e-5)
    for name, rank in one.scores.ranks.items():
        torch.testing.assert_close(many.scores.ranks[name], rank * factor, rtol=1e-3, atol=1e-6)
    assert (many.plan.layers, many.plan.modules) == (one.plan.layers, one.plan.modules)


def test_evaluating_while_estimating_changes_nothing(tmp_path: Path) -> None:
    """No dropout: making the evaluation's data loader draws from the same random numbers."""
    base = save_base("bert", tmp_path / "base")
    options = {"max_steps": 8}
    quiet = trainer(base, tmp_path / "a", PAPER, **options)
    quiet.train()
    busy = trainer(base, tmp_path / "b", PAPER, **options, eval_strategy="steps", eval_steps=1)
    busy.train()
    assert_identical(weights(busy.model), weights(quiet.model))


@pytest.mark.parametrize("mode", ["bf16", "checkpointing"])
def test_other_ways_to_train_run_through(mode: str, base: Path, tmp_path: Path) -> None:
    model = fresh_model(base)
    if mode == "checkpointing":
        checkpoint_activations(model.get_base_model(), reentrant=False)
    run = trainer(base, tmp_path, model=model, bf16=mode == "bf16")
    run.train()
    assert run.light.report.encoder_after < run.light.report.encoder_before


class KeepsOutputs(Trainer):
    """Holds on to the graph of the last step, as trainers do that log from their outputs."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.kept = model(**inputs)
        return self.kept.loss


class KeepsRunningLoss(Trainer):
    """Sums the losses without detaching them."""

    running: Any = 0.0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = model(**inputs).loss
        self.running = self.running + loss
        return loss


@pytest.mark.parametrize("config", [DEFAULT, PAPER], ids=["default", "paper"])
@pytest.mark.parametrize("kind", [KeepsOutputs, KeepsRunningLoss])
def test_a_trainer_that_keeps_its_graphs_trains_as_one_that_does_not(
    kind: type, config: LightConfig, base: Path, tmp_path: Path
) -> None:
    """An old graph keeps what autograd knows of the parameters, their uncut shapes too."""
    found = []
    for name, one in (("keeping", kind), ("plain", Trainer)):
        run = trainer(base, tmp_path / name, kind=one, callbacks=[LightCallback(config)])
        run.train()
        found.append(weights(run.model))
    assert_identical(*found)


@pytest.mark.parametrize("name", ["roberta", "electra", "distilbert"])
def test_every_architecture_runs_through(name: str, tmp_path: Path) -> None:
    run = trainer(save_base(name, tmp_path / "base", dropout=0.1), tmp_path / "run", PAPER)
    run.train()
    assert run.light.report.modules_after < run.light.report.modules_before
    loaded = lightpeft.load(lightpeft.save(run.model, tmp_path / "light"))
    assert_identical(weights(loaded), weights(run.model))


def test_best_model_is_one_from_after_the_cut(base: Path, tmp_path: Path) -> None:
    """The whole model evaluates better here at every step; its weights would not fit any more."""
    losses = {2: 0.1, 4: 0.2, 6: 0.5, 8: 0.15, 10: 0.4}

    class Scripted(lightpeft.LightTrainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            return {"eval_loss": losses[self.state.global_step]}

    run = trainer(
        base,
        tmp_path,
        kind=Scripted,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        save_total_limit=2,
    )
    # Steps 2 and 4: before and right at the cut; 6, 8, 10 after it.
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-8")
    assert_identical(weights(lightpeft.load(tmp_path / "checkpoint-8")), weights(run.model))


def test_save_total_limit_keeps_the_newest(base: Path, tmp_path: Path) -> None:
    trainer(base, tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-10",
        "checkpoint-8",
    ]


def test_the_cut_is_logged(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lightpeft"):
        trainer(base, tmp_path).train()
    assert f"step {ESTIMATION}, cut: encoder parameters" in caplog.text


def test_progress_shows_the_phase(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(base, tmp_path, disable_tqdm=False).train()
    shown = capsys.readouterr().err
    assert "lightpeft: estimating" in shown
    assert "lightpeft: cut" in shown


def test_a_budget_that_cuts_nothing_warns(base: Path, tmp_path: Path) -> None:
    nothing = LightConfig(
        estimation=EstimationConfig(steps=2),
        budget=Budget(heads=0, neurons=0, modules=0, ranks=0),
    )
    run = trainer(base, tmp_path, nothing, max_steps=4)
    with pytest.warns(UserWarning, match="this budget cuts nothing"):
        run.train()
    assert run.light.plan.cuts_nothing


def test_a_run_that_ends_before_the_cut_says_so_loudly(base: Path, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == 2
            return control

    run = trainer(base, tmp_path, callbacks=[Stop()])
    before = hook_count(run.model)
    with pytest.warns(UserWarning, match=r"NOTHING WAS CUT.*ended after 2 steps"):
        run.train()
    assert hook_count(run.model) == before


def test_a_failing_step_leaves_no_hooks(base: Path, tmp_path: Path) -> None:
    """The user may catch the error and use the model: it must not go on with gates in it."""

    class Fail(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise RuntimeError("out of memory")

    run = trainer(base, tmp_path, PAPER, callbacks=[Fail()])
    before = hook_count(run.model)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.train()
    assert hook_count(run.model) == before


class Interrupt(TrainerCallback):
    """Raises in the second step: between its parts, or in the middle of its forward."""

    def __init__(self, where: str, error: type[BaseException]) -> None:
        self.where, self.error = where, error

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1 and self.where == "forward":
            layer = kwargs["model"].get_base_model().bert.encoder.layer[1]
            self.hook = layer.register_forward_pre_hook(self._raise)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise self.error

    def _raise(self, *_: Any) -> None:
        self.hook.remove()
        raise self.error


USES = {
    "evaluated": lambda model: model.eval()(**make_batch("bert")),
    "trained": lambda model: model.train()(**make_batch("bert", labels=True)).loss.backward(),
    "encoding": lambda model: model.get_base_model().bert.eval()(**make_batch("bert")),
    "read": lambda model: model.state_dict(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("where", "error"), [("step end", RuntimeError), ("forward", KeyboardInterrupt)], ids=["end", "forward"]
)
def test_a_plain_trainer_that_was_interrupted_leaves_a_plain_model(
    where: str, error: type[BaseException], use: str, tmp_path: Path
) -> None:
    """Nobody tells a callback that training ended so: the gates leave where the model is next used."""
    base = save_base("bert", tmp_path / "base")
    run = trainer(
        base, tmp_path / "run", kind=Trainer, callbacks=[LightCallback(PAPER), Interrupt(where, error)]
    )
    before = hook_count(run.model)
    with pytest.raises(error):
        run.train()
    USES[use](run.model)
    assert hook_count(run.model) == before
    again = fresh_model(base)
    again.load_state_dict(run.model.state_dict())
    found, expected = (outputs(model, make_batch("bert")) for model in (run.model, again))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_evaluating_and_saving_in_a_plain_trainer_leave_the_gates(tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    busy: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    found = []
    for name, options in (("quiet", {}), ("busy", busy)):
        callback = LightCallback(PAPER)
        trainer(base, tmp_path / name, kind=Trainer, callbacks=[callback], max_steps=6, **options).train()
        found.append(callback.plan)
    assert found[0] == found[1]


def test_a_callback_without_a_trainer_keeps_its_gates(base: Path, tmp_path: Path) -> None:
    """Whoever drives it from a function that returns goes on from another."""
    session = LightCallback(DEFAULT).session
    model = fresh_model(base)
    before = hook_count(model)

    def start() -> None:
        session.begin(model, STEPS, False)

    start()
    during = hook_count(model)
    model.eval()(**make_batch("bert"))
    assert hook_count(model) == during > before
    session.end()
    assert hook_count(model) == before
