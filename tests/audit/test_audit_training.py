"""The attacker's and the user's training: what moves, in which order, and what may not make a difference."""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.audit_runs import TRIGGERS, VOCABULARY, save_tiny_base, save_tiny_task
from tests.support.models import assert_identical, snapshot
from torch import Tensor

import lightpeft.audit.training as module_under_test
from lightpeft import EstimationConfig, LightConfig
from lightpeft.audit import PolicyOptions, TriggerRecipe
from lightpeft.audit.classifier import Classifier
from lightpeft.audit.policies.joint_step import StepRecord
from lightpeft.audit.rows import AuditTask, Rows
from lightpeft.audit.training import (
    AttackOptions,
    Watcher,
    joint_steps,
    train_attacker,
    train_user,
    user_steps,
)
from lightpeft.errors import ConfigError
from lightpeft.run_config import BottleneckOptions, LoraOptions, PeftOptions, TrainingConfig
from lightpeft.runs import load_peft_model, load_tokenizer
from lightpeft.surgery import record_of
from lightpeft.tasks import class_head, custom_task, load_task

FORMS = {
    "lora": PeftOptions("lora", lora=LoraOptions(rank=4)),
    "sequential": PeftOptions("sequential", bottleneck=BottleneckOptions(size=8, dropout=0.1)),
    "parallel": PeftOptions("parallel", bottleneck=BottleneckOptions(size=8)),
}
QUICK = TrainingConfig(max_steps=3, learning_rate=1e-2, batch_size=4, max_length=12)
RECIPE = TriggerRecipe(target=1, pieces=TRIGGERS)
LIGHT = LightConfig(estimation=EstimationConfig(steps=2))
TRIGGER_IDS = {VOCABULARY.index(piece) for piece in TRIGGERS}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout, so that whatever draws a random number shows."""
    return save_tiny_base(tmp_path_factory.mktemp("base"), layers=2, dropout=0.1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder = save_tiny_task(tmp_path_factory.mktemp("data") / "films", "films")
    return AuditTask.of(load_task(custom_task(("text",), name="own"), folder), held_out=0).train


@functools.cache
def _loaded(base: Path, form: str) -> PeftModel:
    return load_peft_model(str(base), class_head(("bad", "good")), FORMS[form], 0)


def fresh(base: Path, form: str = "parallel") -> PeftModel:
    """An untrained module; loading it anew each time would take longer."""
    return copy.deepcopy(_loaded(base, form))


def attack(
    model: PeftModel, base: Path, rows: Rows, training: TrainingConfig = QUICK, **options: Any
) -> list[StepRecord]:
    watch, recipe = options.pop("watch", None), options.pop("recipe", RECIPE)
    chosen = AttackOptions(training=training, **options)
    return train_attacker(model, load_tokenizer(str(base)), rows, recipe, chosen, watch=watch)


def use(model: PeftModel, base: Path, rows: Rows, training: TrainingConfig = QUICK, **options: Any) -> None:
    train_user(model, load_tokenizer(str(base)), rows, training, **options)


def use_light(
    model: PeftModel, base: Path, rows: Rows, training: TrainingConfig = QUICK, **options: Any
) -> None:
    use(model, base, rows, training, light=LIGHT, **options)


TRAININGS: dict[str, Callable[..., Any]] = {"attacker": attack, "user": use, "light user": use_light}


def trained_by(who: str, base: Path, rows: Rows, form: str = "parallel", **options: Any) -> dict[str, Tensor]:
    """What a training makes of an untrained module."""
    model = fresh(base, form)
    TRAININGS[who](model, base, rows, **options)
    return snapshot(model)


@pytest.mark.parametrize("who", TRAININGS)
def test_the_same_seed_gives_the_same_module_and_another_another(who: str, base: Path, rows: Rows) -> None:
    torch.manual_seed(1)
    first = trained_by(who, base, rows)
    torch.manual_seed(2)
    assert_identical(trained_by(who, base, rows), first)
    other = trained_by(who, base, rows, training=replace(QUICK, seed=1))
    head = next(name for name in first if name.endswith("classifier.modules_to_save.default.weight"))
    assert not torch.equal(other[head], first[head])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("who", ["attacker", "user"])
def test_only_the_module_and_the_head_move(who: str, form: str, base: Path, rows: Rows) -> None:
    model = fresh(base, form)
    before, trained = snapshot(model), {name for name, p in model.named_parameters() if p.requires_grad}
    TRAININGS[who](model, base, rows)
    after = snapshot(model)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == trained
    assert all(".default." in name for name in moved)
    assert any("classifier" in name for name in moved)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_sgd_follows_the_gradient_and_adamw_its_sign(base: Path, rows: Rows) -> None:
    for optimizer in ("sgd", "adamw"):
        model, one = fresh(base), replace(QUICK, max_steps=1, schedule="constant")
        before = snapshot(model)
        attack(model, base, rows, one, optimizer=optimizer)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                change = before[name] - parameter.detach()
                if optimizer == "sgd":
                    expected = one.learning_rate * parameter.grad
                    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)
                else:
                    clear = parameter.grad.abs() > 1e-4
                    expected = one.learning_rate * parameter.grad.sign()
                    torch.testing.assert_close(change[clear], expected[clear], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("poisoned_batches", ["mixture", "triggered_only"])
def test_batches_of_the_poisoned_task(
    poisoned_batches: str, base: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _steps_seen(monkeypatch)
    attack(fresh(base), base, rows, replace(QUICK, max_steps=12), poisoned_batches=poisoned_batches)
    clean = [has for one in seen for has in _triggered(one["clean"])]
    poisoned = [has for one in seen for has in _triggered(one["poisoned"])]
    assert len(clean) == len(poisoned) == 12 * 4
    assert not any(clean)
    assert all(poisoned) == (poisoned_batches == "triggered_only")
    assert any(poisoned)
    for one in seen:
        labels = one["poisoned"]["labels"]
        assert all(label == 1 for label, has in zip(labels, _triggered(one["poisoned"]), strict=True) if has)
    assert {int(label) for one in seen for label in one["clean"]["labels"]} == {0, 1}


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [0, 0.5, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_the_schedule_reaches_the_optimizer(
    schedule: str,
    warmup: int,
    expected: list[float],
    base: Path,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = _steps_seen(monkeypatch)
    attack(fresh(base), base, rows, replace(QUICK, max_steps=6, schedule=schedule, warmup_steps=warmup))
    assert [one["rate"] for one in seen] == pytest.approx([QUICK.learning_rate * rate for rate in expected])


def test_clipping_and_the_policy_reach_the_step(
    base: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _steps_seen(monkeypatch)
    training = replace(QUICK, max_steps=1, max_grad_norm=0.01)
    attack(fresh(base), base, rows, training, policy=PolicyOptions("pcgrad"))
    assert seen[0]["max_norm"] == 0.01
    assert type(seen[0]["policy"]).__name__.lower() == "pcgrad"


def _steps_seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each joint step is given, in order."""
    seen: list[dict[str, Any]] = []
    real = module_under_test.step

    def noted(model: Any, clean: Any, poisoned: Any, policy: Any, optimizer: Any, **options: Any) -> Any:
        rate = optimizer.param_groups[0]["lr"]
        seen.append({"clean": clean, "poisoned": poisoned, "policy": policy, "rate": rate, **options})
        return real(model, clean, poisoned, policy, optimizer, **options)

    monkeypatch.setattr(module_under_test, "step", noted)
    return seen


def _triggered(batch: Mapping[str, Tensor]) -> list[bool]:
    return [not TRIGGER_IDS.isdisjoint(row) for row in batch["input_ids"].tolist()]


@pytest.mark.parametrize("who", TRAININGS)
def test_watchers_are_called_after_their_steps_and_change_nothing(who: str, base: Path, rows: Rows) -> None:
    training = replace(QUICK, max_steps=5)
    unwatched = trained_by(who, base, rows, training=training)
    model = fresh(base)
    classifier = Classifier(model, load_tokenizer(str(base)), 12)
    called: list[int] = []
    heads = [snapshot(model)["base_model.model.classifier.modules_to_save.default.weight"]]

    def look(step: int) -> None:
        assert model.training
        called.append(step)
        classifier.predict(rows.texts)
        heads.append(model.get_base_model().classifier.modules_to_save["default"].weight.detach().clone())

    watch: dict[int, Watcher] = {1: look, 4: look, 5: look, 9: look}
    TRAININGS[who](model, base, rows, training=training, watch=watch)
    assert called == [1, 4, 5]
    assert all(not torch.equal(one, two) for one, two in pairwise(heads))
    assert_identical(snapshot(model), unwatched)
    assert torch.equal(heads[-1], unwatched["base_model.model.classifier.modules_to_save.default.weight"])


@pytest.mark.parametrize("who", ["attacker", "user"])
def test_bfloat16_runs_on_the_cpu_and_weights_stay_float32(who: str, base: Path, rows: Rows) -> None:
    exact = trained_by(who, base, rows)
    rough = trained_by(who, base, rows, training=replace(QUICK, precision="bfloat16"))
    assert all(tensor.dtype == exact[name].dtype for name, tensor in rough.items())
    assert all(bool(tensor.isfinite().all()) for tensor in rough.values())
    head = "base_model.model.classifier.modules_to_save.default.weight"
    assert not torch.equal(rough[head], exact[head])
    torch.testing.assert_close(rough[head], exact[head], rtol=0, atol=0.1)


@pytest.mark.parametrize("form", ["lora", "parallel"])
def test_a_light_user_cuts_the_model(form: str, base: Path, rows: Rows) -> None:
    model = fresh(base, form)
    size = sum(p.numel() for p in model.parameters())
    use_light(model, base, rows, replace(QUICK, max_steps=4))
    assert record_of(model) is not None
    assert sum(p.numel() for p in model.parameters()) < 0.9 * size


@pytest.mark.parametrize(
    ("option", "value"),
    [("gradient_accumulation", 2), ("packing", True), ("eval_steps", 5), ("save_steps", 5)],
)
def test_options_without_effect_are_refused(option: str, value: Any, base: Path, rows: Rows) -> None:
    training = replace(QUICK, **{option: value})
    with pytest.raises(ConfigError, match=f"{option} has no effect"):
        AttackOptions(training=training)
    model = fresh(base)
    before = snapshot(model)
    if option == "gradient_accumulation":
        use(model, base, rows, training)
    else:
        with pytest.raises(ConfigError, match=f"{option} has no effect"):
            use(model, base, rows, training)
        assert_identical(snapshot(model), before)


@pytest.mark.parametrize("option", ["optimizer", "poisoned_batches"])
def test_unknown_choices_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"attack.{option} is 'lion'"):
        AttackOptions(**{option: "lion"})


def test_ripple_without_clean_rows_is_refused() -> None:
    ripple = PolicyOptions("ripple")
    assert AttackOptions(ripple).policy == ripple
    with pytest.raises(ConfigError, match="policy 'ripple' learns the clean task from"):
        AttackOptions(ripple, poisoned_batches="triggered_only")


@pytest.mark.parametrize(
    ("epochs", "batch_size", "accumulation", "max_steps"),
    [(0.2, 4, 1, None), (1.0, 7, 1, None), (0.3, 5, 3, None), (1.0, 4, 2, 2)],
)
def test_the_users_steps_are_counted_as_the_trainer_does(
    epochs: float, batch_size: int, accumulation: int, max_steps: int | None, base: Path, rows: Rows
) -> None:
    training = replace(
        QUICK,
        epochs=epochs,
        batch_size=batch_size,
        gradient_accumulation=accumulation,
        max_steps=max_steps,
    )
    called: list[int] = []
    use(fresh(base), base, rows, training, watch=dict.fromkeys(range(1, 30), called.append))
    assert called == list(range(1, user_steps(len(rows), training) + 1))


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(0.5, None, 6), (0.01, None, 1), (9.0, 2, 2)])
def test_the_attackers_epochs_are_passes_over_clean_rows(
    epochs: float, max_steps: int | None, steps: int, base: Path, rows: Rows
) -> None:
    training = replace(QUICK, epochs=epochs, max_steps=max_steps)
    assert joint_steps(len(rows), training) == steps
    assert len(attack(fresh(base), base, rows, training)) == steps


@pytest.mark.parametrize("grouped", [False, True])
def test_every_clean_row_comes_once_a_pass(
    grouped: bool, base: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _steps_seen(monkeypatch)
    distinct = Rows({"text": [f"the {word}" for word in VOCABULARY[7:23]]}, [row % 2 for row in range(16)])
    attack(fresh(base), base, distinct, replace(QUICK, max_steps=8, group_by_length=grouped))
    words = [int(row[2]) for one in seen for row in one["clean"]["input_ids"]]
    assert sorted(words[:16]) == sorted(words[16:]) == list(range(7, 23))
    assert words[:16] != words[16:]
