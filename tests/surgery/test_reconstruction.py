"""What stays says what it can of what was cut: as ridge regression by hand says, only where it helps."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.forms import FORM_ROWS
from tests.support.models import assert_identical
from tests.support.probing import agree, kept_units, outputs, random_scores
from tests.support.zoo import ANIMALS, BY_NAME, Animal
from torch import Tensor, nn

import lightpeft
from lightpeft import Budget, Plan, Scores, SurgeryConfig, find_anatomy, make_plan
from lightpeft.anatomy import base_of, linear_at
from lightpeft.errors import ConfigError
from lightpeft.linears import INPUTS, matrix, width
from lightpeft.surgery import reconstruction
from lightpeft.surgery.reconstruction import Loss, _Moments, _regression, _share, _solve

FULL = SurgeryConfig(reconstruct_rank=1000)
BUDGET = Budget(heads=0.3, neurons=0.4, modules=0.3, ranks=0.4)
PENALTY = 0.1
CASES = [pytest.param(animal, "lora", id=f"{animal.name}-lora") for animal in ANIMALS] + [
    pytest.param(BY_NAME[name], form, id=f"{name}-{form}")
    for name in ("bert", "llama", "gpt2", "t5")
    for form in FORM_ROWS
    if form != "lora"
]


@pytest.fixture(autouse=True)
def one_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "PENALTIES", (PENALTY,))


def whole_model(animal: Animal, form: str) -> tuple[PeftModel, list[dict[str, Tensor]], Plan, Scores]:
    """A model, batches, a plan and scores that know the means of all inputs of output projections."""
    model = animal.with_peft(form, animal.attentions[-1])
    batches = [animal.batch(padded=False, seed=seed) for seed in range(8)]
    scores = random_scores(model)
    plan = make_plan(scores, find_anatomy(model), BUDGET)
    means = {name: rows.mean(0) for name, rows in inputs_of(model, plan, batches).items()}
    return model, batches, plan, dataclasses.replace(scores, means=means)


@torch.no_grad()
def inputs_of(model: PeftModel, plan: Plan, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """(tokens, inputs) of every output projection that loses some, batch after batch."""
    base, seen = base_of(model), {}
    handles = [
        linear_at(base, name).register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2))
        )
        for name, kept in kept_units(model, plan).items()
        if 0 < channels_of(base, name, kept, model) < width(linear_at(base, name), INPUTS)
    ]
    model.eval()
    for batch in batches:
        base(**batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def channels_of(base: nn.Module, name: str, kept: tuple[int, ...], model: PeftModel) -> int:
    return len(kept_channels(base, name, kept, model))


def kept_channels(base: nn.Module, name: str, kept: tuple[int, ...], model: PeftModel) -> list[int]:
    units = next(u for layer in find_anatomy(model).layers for u in layer.units if u.out == name)
    size = width(linear_at(base, name), INPUTS) // units.count
    return [unit * size + channel for unit in kept for channel in range(size)]


def effective_weight(model: PeftModel, name: str) -> Tensor:
    """W + ΔW of all LoRA on it."""
    layer = base_of(model).get_submodule(name)
    weight = matrix(linear_at(base_of(model), name)).detach().clone()
    for adapter in getattr(layer, "lora_A", {}):
        a, b = (getattr(layer, part)[adapter].weight.detach() for part in ("lora_A", "lora_B"))
        weight += layer.scaling[adapter] * b @ a
    return weight


def by_hand(x: Tensor, weight: Tensor, kept: list[int], mean: Tensor) -> Tensor:
    """(d_out, kept): ridge regression of all rows by augmented least squares, in float64."""
    x = (x - mean).double()
    gone = [channel for channel in range(x.shape[1]) if channel not in set(kept)]
    lost = x[:, gone] @ weight[:, gone].double().T
    penalty = (PENALTY * x[:, kept].square().sum(0).mean()).sqrt()
    rows = torch.cat([x[:, kept], penalty * torch.eye(len(kept), dtype=torch.float64)])
    answers = torch.cat([lost, torch.zeros(len(kept), lost.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(rows, answers).solution.T.float()


@pytest.mark.parametrize(("animal", "form"), CASES)
def test_kept_columns_are_those_of_ridge_regression_by_hand(
    animal: Animal, form: str, tmp_path: Path
) -> None:
    model, batches, plan, scores = whole_model(animal, form)
    reads_weights = form == "dora"
    seen = inputs_of(model, plan, batches)
    weights = {name: effective_weight(model, name) for name in seen}
    kept = {name: kept_channels(base_of(model), name, kept_units(model, plan)[name], model) for name in seen}
    without, corrected = copy.deepcopy(model), model
    lightpeft.cut(without, plan, scores=scores, config=FULL)
    report = lightpeft.cut(corrected, plan, scores=scores, batches=batches, config=FULL)
    changed = 0
    for name, x in seen.items():
        before, after = (linear_at(base_of(one), name) for one in (without, corrected))
        found = matrix(after).detach() - matrix(before).detach()
        if torch.equal(found, torch.zeros_like(found)):
            continue  # it would do harm on the batch held back
        changed += 1
        expected = by_hand(x, weights[name], kept[name], scores.means[name])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        shift = after.bias.detach() - (0 if before.bias is None else before.bias.detach())
        torch.testing.assert_close(shift, -expected @ scores.means[name][kept[name]], rtol=1e-3, atol=1e-4)
    assert bool(changed) != reads_weights
    assert (report.reconstructed > 0) == bool(changed)
    if animal.task == "towers":
        return
    batch = animal.batch(padded=True)
    said = outputs(corrected, batch)
    lightpeft.save(corrected, tmp_path)
    loaded = lightpeft.load(tmp_path, base=animal.build(animal.attentions[-1]))
    assert_identical(loaded.state_dict(), corrected.state_dict())
    if FORM_ROWS[form].linear:
        agree(outputs(loaded.merge_and_unload(), batch), said)


def test_padding_does_not_count() -> None:
    found = []
    for filler in (1, 7):
        model = BY_NAME["bert"].with_lora("sdpa")
        batches = [BY_NAME["bert"].batch(padded=True, seed=seed) for seed in range(8)]
        for batch in batches:
            batch["input_ids"][batch["attention_mask"] == 0] = filler
        plan = make_plan(random_scores(model), find_anatomy(model), BUDGET)
        lightpeft.cut(model, plan, batches=batches, config=FULL)
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "batches"),
    [(dataclasses.replace(FULL, reconstruct_rank=0), 8), (FULL, 1)],
    ids=["rank 0", "one batch"],
)
def test_nothing_is_reconstructed(config: SurgeryConfig, batches: int) -> None:
    model, given, plan, scores = whole_model(BY_NAME["bert"], "lora")
    report = lightpeft.cut(model, plan, scores=scores, batches=given[:batches], config=config)
    assert report.reconstructed == 0
    assert "says" not in report.describe()


def test_a_reconstruction_without_the_means_is_refused() -> None:
    with pytest.raises(ConfigError, match="reconstruct_rank is 32 and surgery"):
        SurgeryConfig(reconstruct_rank=32, compensate=False)


def moments(x: Tensor, y: Tensor) -> _Moments:
    found = _Moments(
        Loss(torch.arange(x.shape[1]), torch.arange(0), torch.zeros(y.shape[1], 0), torch.zeros(0))
    )
    found.add(x, y)
    return found


def test_a_low_rank_is_the_best_of_its_rank_and_its_share_is_what_it_explains() -> None:
    generator = torch.Generator().manual_seed(0)
    x, held = torch.randn(2, 400, 12, generator=generator)
    true = torch.randn(12, 6, generator=generator) @ torch.diag(torch.tensor([9.0, 5.0, 2.0, 0.3, 0.2, 0.1]))
    shares = []
    for rank in range(1, 7):
        left, right = _regression(moments(x, x @ true), PENALTY, rank)
        assert (left.shape, right.shape) == ((6, rank), (rank, 12))
        error = (held @ true - held @ (left @ right).T).square().sum() / (held @ true).square().sum()
        shares.append(_share((left, right), moments(held, held @ true)))
        assert shares[-1] == pytest.approx(1 - float(error), abs=1e-4)
    assert shares == sorted(shares)
    assert shares[2] > 0.95 * shares[-1]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_does_harm_on_batches_held_back_is_left_out(sign: float) -> None:
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    found = _solve(moments(x, x @ torch.ones(5, 3)), moments(x, sign * x @ torch.ones(5, 3)), 3)
    assert (found is not None) == (sign > 0)


def test_small_tables_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Mapping[str, Tensor]] = []
    for limit in (2**30, 1):
        monkeypatch.setattr(reconstruction, "LARGEST_TABLES", limit)
        model, batches, plan, scores = whole_model(BY_NAME["gpt2"], "lora")
        lightpeft.cut(model, plan, scores=scores, batches=batches, config=FULL)
        found.append(model.state_dict())
    assert_identical(*found)
