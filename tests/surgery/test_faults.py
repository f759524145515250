"""A cut that goes wrong is noticed, named, and taken back completely."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import (
    NAMES,
    ROWS,
    assert_identical,
    make_batch,
    snapshot,
    tiny_peft,
)
from tests.support.plans import random_plan, random_scores
from tests.support.watching import InjectedError, differences, explode, patch, watched
from torch import Tensor, nn

import lightpeft
from lightpeft import AnatomyError, LightPeftError, PlanError, VerificationError, find_anatomy
from lightpeft.adapters.lora import LoraFollower
from lightpeft.edits import Journal
from lightpeft.surgery import padded_batch

CUT = "lightpeft.surgery.cut"
STEPS = "lightpeft.surgery.operation"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Patient:
    """A model with an optimizer after one step, and what it looked like."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.model = name, tiny_peft(name, folder)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3)
        self.model.train()
        self.model(**make_batch(name, labels=True)).loss.backward()
        self.optimizer.step()
        self.gradients = [(p, p.grad.clone()) for p in trained]
        self.moments = [s["exp_avg"].clone() for s in self.optimizer.state.values()]
        self.tensors, self.seen = snapshot(self.model), watched(self.model, self.optimizer)

    def cut(self, **options: Any) -> None:
        scores = random_scores(self.model, gates=True, means=True)
        plan = random_plan(self.model)
        batch = make_batch(self.name, labels=True)
        lightpeft.cut(self.model, plan, self.optimizer, scores=scores, batch=batch, **options)

    def assert_untouched(self) -> None:
        assert_identical(self.model.state_dict(), self.tensors)
        assert not differences(watched(self.model, self.optimizer), self.seen)
        for parameter, gradient in self.gradients:
            assert torch.equal(parameter.grad, gradient)
        for state, moment in zip(self.optimizer.state.values(), self.moments, strict=True):
            assert torch.equal(state["exp_avg"], moment)


def shifted(kept: Tensor, whole: int) -> Tensor:
    """As many indices, but other ones."""
    return (kept + 1) % whole if len(kept) < whole else kept


def test_wrong_rows_in_one_layer_are_named_and_taken_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient(name, tmp_path)
    place, real = ROWS[name].at(1, "value"), Journal.slice_linear
    victim = patient.model.get_base_model().get_submodule(place).get_base_layer()

    def wrong(self: Journal, linear: nn.Linear, dim: int, kept: Tensor) -> None:
        if linear is victim and dim == 0:
            kept = shifted(kept, linear.out_features)
        real(self, linear, dim, kept)

    monkeypatch.setattr(Journal, "slice_linear", wrong)
    with pytest.raises(VerificationError, match=r"layer 1 .*put back"):
        patient.cut()
    patient.assert_untouched()


def test_wrong_columns_of_the_last_ffn_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient(name, tmp_path)
    place, real = ROWS[name].at(2, "ffn_out"), Journal.slice_linear
    victim = patient.model.get_base_model().get_submodule(place).get_base_layer()

    def wrong(self: Journal, linear: nn.Linear, dim: int, kept: Tensor) -> None:
        real(self, linear, dim, shifted(kept, 64) if linear is victim else kept)

    monkeypatch.setattr(Journal, "slice_linear", wrong)
    with pytest.raises(VerificationError, match="layer 2 "):
        patient.cut()
    patient.assert_untouched()


def test_wrong_lora_rows_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Patient(name, tmp_path)
    plan = random_plan(patient.model)
    places = [module.name for module in plan.kept_modules if module.name.endswith((".value", ".v_lin"))]
    place, real = places[0], LoraFollower.keep_outputs
    victim = patient.model.get_base_model().get_submodule(place)

    def wrong(self: LoraFollower, kept: Tensor, journal: Journal) -> None:
        real(self, shifted(kept, 32) if self._layer is victim else kept, journal)

    monkeypatch.setattr(LoraFollower, "keep_outputs", wrong)
    number = next(i for i in range(3) if f".{i}." in place)
    with pytest.raises(VerificationError, match=f"layer {number} "):
        patient.cut()
    patient.assert_untouched()


def test_a_stale_head_count_is_refused_and_taken_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the architecture computes with the count, a model that lies about it is not left."""
    patient = Patient(name, tmp_path)
    units = find_anatomy(patient.model).layers[1].attention
    assert units is not None
    victim, real = patient.model.get_base_model().get_submodule(units.module), Journal.set_attribute
    head_count = next(attribute for attribute, quantity in units.follow if quantity == "heads")

    def stale(self: Journal, owner: object, key: str, value: Any) -> None:
        if owner is not victim or key != head_count:
            real(self, owner, key, value)

    monkeypatch.setattr(Journal, "set_attribute", stale)
    with pytest.raises(LightPeftError, match=r"layer.1"):
        patient.cut()
    patient.assert_untouched()


LATE_STEPS = [
    f"{STEPS}.cut_base",
    f"{STEPS}.fold_gates",
    f"{STEPS}.fold_pairs",
    f"{STEPS}.describe_in_config",
    f"{STEPS}.scale_rows",
    f"{STEPS}.shift_biases",
    f"{CUT}.largest_difference",
    f"{CUT}.prepare_to_follow",
    f"{CUT}.attach_record",
    "lightpeft.surgery.optimizer.find_layout",
]


@pytest.mark.parametrize("where", LATE_STEPS)
def test_an_exception_in_any_step_takes_everything_back(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient("bert", tmp_path)
    patch(monkeypatch, where, explode)
    with pytest.raises(InjectedError):
        patient.cut()
    patient.assert_untouched()


def test_an_exception_in_the_middle_of_the_base_takes_everything_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, real, calls = Patient(name, tmp_path), Journal.slice_linear, []

    def fragile(self: Journal, linear: nn.Linear, dim: int, kept: Tensor) -> None:
        calls.append(dim)
        if len(calls) == 17:
            raise InjectedError
        real(self, linear, dim, kept)

    monkeypatch.setattr(Journal, "slice_linear", fragile)
    with pytest.raises(InjectedError):
        patient.cut()
    patient.assert_untouched()


def test_an_interrupt_takes_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Patient("bert", tmp_path)

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    patch(monkeypatch, f"{STEPS}.fold_pairs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        patient.cut()
    patient.assert_untouched()


def test_after_a_failed_cut_the_right_cut_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient("bert", tmp_path)
    with monkeypatch.context() as patched:
        patch(patched, f"{STEPS}.describe_in_config", explode)
        with pytest.raises(InjectedError):
            patient.cut()
    patient.cut()
    assert find_anatomy(patient.model).parameters < 30_000


def test_wrong_compensation_does_not_go_unnoticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN means would make every bias they touch NaN."""
    patient = Patient("bert", tmp_path)
    scores = random_scores(patient.model, means=True)
    for mean in scores.means.values():
        mean[:] = float("nan")
    with pytest.raises(LightPeftError):
        lightpeft.cut(patient.model, random_plan(patient.model), patient.optimizer, scores=scores)
    patient.assert_untouched()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "roberta"}, "the plan is for roberta, the model is bert"),
        ({"layers": ()}, "0 layers, the model has 3"),
        ({"modules": ()}, "PEFT modules are not the model's"),
    ],
)
def test_a_plan_of_another_model_is_refused_before_anything_is_touched(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    patient = Patient("bert", tmp_path)
    plan = dataclasses.replace(random_plan(patient.model), **changed)
    with pytest.raises(PlanError, match=message):
        lightpeft.cut(patient.model, plan, patient.optimizer)
    patient.assert_untouched()


def test_a_batch_without_tokens_is_refused(tmp_path: Path) -> None:
    patient = Patient("bert", tmp_path)
    with pytest.raises(AnatomyError, match="without input_ids"):
        lightpeft.cut(patient.model, random_plan(patient.model), batch={"labels": torch.zeros(2)})
    patient.assert_untouched()


def test_the_longest_and_the_shortest_row_are_verified_on(tmp_path: Path) -> None:
    model, batch = tiny_peft("bert", tmp_path), make_batch("bert", labels=True)
    chosen = padded_batch(model, batch | {"num_items_in_batch": torch.tensor(4)})
    assert chosen["num_items_in_batch"] == 4
    assert torch.equal(chosen["input_ids"], batch["input_ids"][[0, 3]])
    assert chosen["attention_mask"].sum(1).tolist() == [10, 2]
    full = padded_batch(model, make_batch("bert", padded=False))
    assert full["attention_mask"].sum(1).tolist() == [6, 10]
    other = padded_batch(model, batch | {"position_ids": torch.arange(10)[None]})
    assert len(other["input_ids"]) == 4, "not every tensor has one entry per row"
