"""Settings × behaviours: what people switch on, and what is promised of each."""

from typing import Any

import pytest
import torch
from transformers import Trainer

import lightpeft
from lightpeft import LightCallback
from tests.settings.conftest import OtherProcess
from tests.settings.row import ESTIMATION, LIGHT, Result, Row, count, frozen, logits, plan_of, same
from tests.settings.table import ROWS
from tests.support.models import assert_identical


def over(rows: list[Row]) -> Any:
    """A behaviour of each of `rows`."""
    marks = {row.name: [pytest.mark.filterwarnings(f"ignore:{text}") for text in row.warns] for row in rows}
    params = [pytest.param(row, id=row.name, marks=marks[row.name]) for row in rows]
    return pytest.mark.parametrize("result", params, indirect=True, scope="module")


def assert_logits(found: Any, result: Result) -> None:
    assert found.keys() == result.logits.keys()
    for key, expected in result.logits.items():
        assert expected.isfinite().all()
        limit = result.row.tolerance * float(expected.abs().max())
        assert float((found[key].float() - expected.float()).abs().max()) <= limit


RUNNING = [row for row in ROWS if not row.refusal]
REFUSED = [row for row in ROWS if row.refusal]
RESUMED = [row for row in ROWS if row.resume]
SCHEDULED = [row for row in ROWS if row.scheduled]


@over(RUNNING)
def test_the_cut_happens(result: Result) -> None:
    assert not plan_of(result.done.model).cuts_nothing
    assert result.size < result.setting.whole


@over(RUNNING)
def test_loading_gives_the_same_logits(result: Result) -> None:
    done = result.done
    load = done.row.load
    loaded = load(done.setting, done.saved) if load else lightpeft.load(done.saved)
    assert count(loaded) <= done.size
    assert_logits(logits(done.row, loaded), done)


@over(RUNNING)
def test_another_process_loads_it(result: Result, other_process: OtherProcess) -> None:
    done = result.done
    if done.row.load:
        pytest.skip("this setting is loaded with objects that only this process has")
    assert_logits(other_process.logits(done.saved, done.row), done)


@over(RUNNING)
def test_nothing_of_the_users_was_changed(result: Result) -> None:
    changed = [one.name for one in result.done.setting.owned if not same(one.then, frozen(one.value))]
    assert not changed


@over(RESUMED)
def test_resuming_is_the_uninterrupted_run(result: Result) -> None:
    done = result.done
    for step in done.row.resume:
        checkpoint = done.setting.folder / "run" / f"checkpoint-{step}"
        torch.manual_seed(step)
        model, callback = done.setting.model(), LightCallback(done.row.light)
        callback.restore(model, checkpoint)
        trainer = done.setting.make_trainer(
            model, Trainer, callbacks=[callback], args=done.setting.arguments(run="again")
        )
        trainer.train(resume_from_checkpoint=str(checkpoint))
        found = {k: v for k, v in model.state_dict().items() if ".original_module." not in k}
        assert_identical(found, done.weights)


@over(SCHEDULED)
def test_the_rate_is_a_multiple_of_the_schedules_after_the_cut(result: Result) -> None:
    setting = result.done.setting
    light, setting.rates = setting.rates, []
    setting.make_trainer(setting.model(), callbacks=[], args=setting.arguments(run="plain")).train()
    factor = LIGHT.learning_rate_factor
    expected = [rate * (1 if step < ESTIMATION else factor) for step, rate in enumerate(setting.rates)]
    assert light == pytest.approx(expected)


@over(REFUSED)
def test_is_refused(result: Result) -> None:
    assert result.error is not None
    assert result.row.refusal in str(result.error)


def test_the_table_is_large_and_its_names_differ() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= 60
