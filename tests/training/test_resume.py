"""Resume from any checkpoint, before or after the cut, is the uninterrupted run, bit by bit."""

import dataclasses
import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import assert_identical, load_base, save_base, with_lora
from tests.support.runs import (
    AUTO,
    CONFIGS,
    DEFAULT,
    PAPER,
    STEPS,
    NoStep,
    Sentences,
    fresh_model,
    trainer,
    weights,
)
from torch import Tensor
from transformers import Trainer, TrainerCallback

import lightpeft
from lightpeft import CheckpointError, EstimationConfig, LightCallback, LightConfig
from lightpeft.checkpoint import last_complete_checkpoint
from lightpeft.errors import OutputError

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


@dataclasses.dataclass
class Whole:
    """An uninterrupted run with a checkpoint after every step."""

    folder: Path
    weights: dict[str, Tensor]
    plan: lightpeft.Plan
    light: LightConfig


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), dropout=0.1)


@pytest.fixture(scope="module")
def wholes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    found = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        run = trainer(base, folder, config, **SAVING)
        run.train()
        found[name] = Whole(folder, weights(run.model), run.light.plan, config)
    return found


def until(whole: Whole, step: int, target: Path) -> Path:
    """A copy of the run as it was after `step` steps."""
    for number in range(1, step + 1):
        name = f"checkpoint-{number}"
        shutil.copytree(whole.folder / name, target / name)
    return target


@pytest.mark.parametrize("step", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("name", CONFIGS)
def test_resume_is_bit_identical(
    name: str, step: int, wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    """`default` and `paper` cut after step 4, `auto` after step 3."""
    whole = wholes[name]
    run = trainer(base, until(whole, step, tmp_path), whole.light, **SAVING)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == STEPS
    assert run.light.plan == whole.plan
    assert_identical(weights(run.model), whole.weights)


@pytest.mark.parametrize("step", [2, 6])
def test_resume_with_the_plain_trainer_and_restore(
    step: int, wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    whole = wholes["paper"]
    checkpoint = until(whole, step, tmp_path) / f"checkpoint-{step}"
    callback, model = LightCallback(whole.light), fresh_model(base)
    callback.restore(model, checkpoint)
    run = trainer(base, tmp_path, model=model, kind=Trainer, callbacks=[callback], **SAVING)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert_identical(weights(run.model), whole.weights)


def test_the_plain_trainer_resumes_before_the_cut_by_itself(
    wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    whole, callback = wholes["default"], LightCallback(DEFAULT)
    until(whole, 3, tmp_path)
    run = trainer(base, tmp_path, kind=Trainer, callbacks=[callback], **SAVING)
    run.train(resume_from_checkpoint=True)
    assert_identical(weights(run.model), whole.weights)


@pytest.mark.parametrize("step", [2, 6])
def test_resume_continues_after_resuming_twice(
    step: int, wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    """Checkpoints that a resumed run writes are as good as those of the first one."""
    whole = wholes["paper"]
    until(whole, step, tmp_path)
    first = trainer(base, tmp_path, whole.light, **SAVING)
    first.train(resume_from_checkpoint=True)
    for number in range(step + 3, STEPS + 1):
        shutil.rmtree(tmp_path / f"checkpoint-{number}")
    second = trainer(base, tmp_path, whole.light, **SAVING)
    second.train(resume_from_checkpoint=True)
    assert_identical(weights(second.model), whole.weights)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
@pytest.mark.parametrize("step", [2, 6])
def test_resume_brings_back_the_frozen_random_head(name: str, step: int, tmp_path: Path) -> None:
    """Scripts seldom seed before they build the model: a head outside PEFT is drawn anew each time."""
    base = save_base(name, tmp_path / "base", dropout=0.1)

    def start(head_seed: int) -> Any:
        model = with_lora(load_base(base, head_seed=head_seed), task_type=None)
        return trainer(base, tmp_path / "run", model=model, **SAVING)

    first = start(1)
    first.train()
    expected = weights(first.model)
    for number in range(step + 1, STEPS + 1):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{number}")
    again = start(2)
    again.train(resume_from_checkpoint=True)
    assert_identical(weights(again.model), expected)


def test_resume_with_accumulation(base: Path, tmp_path: Path) -> None:
    options = SAVING | {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    first = trainer(base, tmp_path, PAPER, **options)
    first.train()
    for number in range(4, STEPS + 1):
        shutil.rmtree(tmp_path / f"checkpoint-{number}")
    second = trainer(base, tmp_path, PAPER, **options)
    second.train(resume_from_checkpoint=True)
    assert_identical(weights(second.model), weights(first.model))


@pytest.mark.parametrize("spoil", ["no marker", "truncated", "missing", "empty marker"])
@pytest.mark.parametrize("step", [3, 6])
def test_an_incomplete_checkpoint_is_passed_over(
    step: int, spoil: str, wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    whole = wholes["default"]
    last = until(whole, step, tmp_path) / f"checkpoint-{step}"
    marker, optimizer = last / "lightpeft_complete.json", last / "optimizer.pt"
    if spoil == "no marker":
        marker.unlink()
    elif spoil == "empty marker":
        marker.write_text("")
    elif spoil == "missing":
        optimizer.unlink()
    else:
        optimizer.write_bytes(optimizer.read_bytes()[:-1])
    assert last_complete_checkpoint(tmp_path) == tmp_path / f"checkpoint-{step - 1}"
    with pytest.raises(CheckpointError, match=rf"not a complete checkpoint.*checkpoint-{step - 1}"):
        trainer(base, tmp_path, **SAVING).train(resume_from_checkpoint=str(last))
    run = trainer(base, tmp_path, **SAVING)
    run.train(resume_from_checkpoint=True)
    assert_identical(weights(run.model), whole.weights)


def test_checkpoint_10_is_newer_than_checkpoint_9(wholes: dict[str, Whole]) -> None:
    folder = wholes["default"].folder
    assert last_complete_checkpoint(folder) == folder / "checkpoint-10"


def test_nothing_complete_is_an_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint to resume from"):
        trainer(base, tmp_path, **SAVING).train(resume_from_checkpoint=True)
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("step", [2, 6])
def test_another_configuration_is_refused(
    step: int, wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    """After the cut too: another `restart_schedule` would silently give other learning rates."""
    until(wholes["default"], step, tmp_path)
    other = LightConfig(estimation=EstimationConfig(steps=5), restart_schedule=True)
    run = trainer(base, tmp_path, other, **SAVING)
    with pytest.raises(CheckpointError, match=r"estimation\.steps 4 instead of 5"):
        run.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("step", [2, 6])
def test_another_base_is_refused(step: int, wholes: dict[str, Whole], tmp_path: Path) -> None:
    until(wholes["default"], step, tmp_path / "run")
    other = save_base("bert", tmp_path / "other", seed=9, dropout=0.1)
    run = trainer(other, tmp_path / "run", **SAVING)
    with pytest.raises(CheckpointError, match="base"):
        run.train(resume_from_checkpoint=True)


def test_a_checkpoint_of_a_plain_run_is_refused(base: Path, tmp_path: Path) -> None:
    trainer(base, tmp_path, kind=Trainer, **SAVING | {"max_steps": 2}).train()
    run = trainer(base, tmp_path, **SAVING)
    with pytest.raises(CheckpointError):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_tampered_record_in_a_checkpoint_is_refused(
    wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    last = until(wholes["default"], 6, tmp_path) / "checkpoint-6"
    data = bytearray((last / "light.safetensors").read_bytes())
    data[-1] ^= 1
    (last / "light.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        trainer(base, tmp_path, **SAVING).train(resume_from_checkpoint=str(last))


def test_a_longer_run_estimates_as_long_as_it_was_begun(
    wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    """`auto` of twice as many steps would be 6, of which the last 3 count; one of them was not summed."""
    longer = SAVING | {"max_steps": 2 * STEPS}
    checkpoint = until(wholes["auto"], 2, tmp_path) / "checkpoint-2"
    run = trainer(base, tmp_path, AUTO, **longer)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert run.light.plan.estimation_steps == wholes["auto"].plan.estimation_steps == 3
    assert run.light.plan.evidence == wholes["auto"].plan.evidence
    assert run.state.global_step == 2 * STEPS


def test_scores_come_back_after_the_cut(wholes: dict[str, Whole], base: Path, tmp_path: Path) -> None:
    whole = wholes["default"]
    run = trainer(base, until(whole, 6, tmp_path), **SAVING)
    run.train(resume_from_checkpoint=True)
    uncut = lightpeft.find_anatomy(fresh_model(base))
    assert lightpeft.make_plan(run.light.scores, uncut, DEFAULT.budget) == whole.plan
    assert torch.isfinite(torch.cat(run.light.scores.heads)).all()


def test_a_new_run_is_refused_where_an_earlier_one_left_checkpoints(base: Path, tmp_path: Path) -> None:
    options = SAVING | {"save_steps": 2}
    trainer(base, tmp_path, **options).train()
    kept = last_complete_checkpoint(tmp_path)
    for kind, callbacks in ((NoStep, None), (Trainer, [LightCallback(DEFAULT)])):
        run = trainer(base, tmp_path, kind=kind, callbacks=callbacks, learning_rate=1e-3, **options)
        with pytest.raises(OutputError, match=r"checkpoint-2.*write over"):
            run.train()
    assert last_complete_checkpoint(tmp_path) == kept


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate 0\.01 instead of 0\.001"),
        ({"seed": 8}, "seed 7 instead of 8"),
        ({"max_steps": 12}, "max_steps 10 instead of 12"),
        ({"data": Sentences(seed=3)}, "data"),
        ({"data": Sentences(36)}, "data"),
    ],
    ids=["rate", "seed", "steps", "other texts", "more texts"],
)
def test_the_checkpoint_of_another_run_is_not_resumed(
    change: dict[str, Any], said: str, wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    until(wholes["default"], 6, tmp_path)
    options = {key: value for key, value in change.items() if key != "data"}
    run = trainer(base, tmp_path, kind=NoStep, **SAVING | options)
    run.train_dataset = change.get("data", run.train_dataset)
    with pytest.raises(CheckpointError, match=said):
        run.train(resume_from_checkpoint=True)


def test_only_the_runs_own_checkpoints_are_deleted(
    wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    """Resumed under its name with another rate it is another run, whose limit does not touch the first."""
    until(wholes["default"], 5, tmp_path)
    (tmp_path / "checkpoint-4" / "note.txt").write_text("of the user")
    run = trainer(base, tmp_path, **SAVING | {"learning_rate": 1e-3, "save_total_limit": 1})
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-4",
        "checkpoint-5",
        "checkpoint-10",
    }


def test_what_the_user_put_into_a_checkpoint_stays(base: Path, tmp_path: Path) -> None:
    class Noting(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (tmp_path / f"checkpoint-{state.global_step}" / "note.txt").write_text("of the user")

    trainer(base, tmp_path, callbacks=[Noting()], **SAVING | {"save_total_limit": 1, "max_steps": 6}).train()
    assert [path.name for path in (tmp_path / "checkpoint-3").iterdir()] == ["note.txt"]


def test_a_full_disk_ends_the_run_and_loses_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = trainer(base, tmp_path, **SAVING | {"save_total_limit": 1}), torch.save

    def full(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"checkpoint-4 could not be written.*No space.*checkpoint-3"):
        run.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    monkeypatch.undo()
    again = trainer(base, tmp_path, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == STEPS


def test_a_finished_run_that_is_resumed_takes_no_further_step(
    wholes: dict[str, Whole], base: Path, tmp_path: Path
) -> None:
    until(wholes["default"], STEPS, tmp_path)
    for _ in range(2):
        run = trainer(base, tmp_path, kind=NoStep, **SAVING)
        run.train(resume_from_checkpoint=True)
        assert run.state.global_step == STEPS
        assert_identical(weights(run.model), wholes["default"].weights)
